import math
from dataclasses import replace

from fedmpi.federated.metrics import RoundMetrics
from fedmpi.study.summary import best_round, summary_line

from .conftest import MakeRounds


def with_scores(rounds: list[RoundMetrics], scores: list[float | None]) -> list[RoundMetrics]:
    return [replace(m, test_metric=s) for m, s in zip(rounds, scores, strict=True)]


def test_best_round_is_the_first_with_the_highest_metric(make_rounds: MakeRounds) -> None:
    rounds = with_scores(make_rounds(4), [-2.0, -1.0, -1.0, None])
    assert best_round(rounds) is rounds[1]


def test_a_diverged_round_is_never_best(make_rounds: MakeRounds) -> None:
    rounds = with_scores(make_rounds(3), [math.nan, 0.1, math.nan])
    assert best_round(rounds) is rounds[1]
    assert best_round(rounds[:1]) is None
    assert summary_line(rounds[:1], rounds=1) == "1 round in 1.24 s  accuracy nan %  5.6 MB sent"


def test_a_run_without_evaluation(make_rounds: MakeRounds) -> None:
    rounds = make_rounds(2, eval_every=5)
    assert best_round(rounds) is None
    assert summary_line(rounds, rounds=2) == "2 rounds in 2.46 s  11.2 MB sent"
