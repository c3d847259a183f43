"""`overlap_evaluation`: the same records and bits, evaluated while the workers train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fedmpi.config import AggregationConfig, DetectConfig, PrivacyConfig
from fedmpi.errors import FedMPIError
from fedmpi.federated import job as job_module
from fedmpi.federated.averaging import Averaging
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from tests.comm.worlds import World
from tests.federated.lab import bits, check_phases, config_of, play, play_alone

CLOCKS = {"seconds", "phases", "train_max", "idle_seconds", "idle_cpu", "mask_seconds"}
NOISE = PrivacyConfig(kind="central", noise_multiplier=1.0)
LIMITED = PrivacyConfig(kind="local", noise_multiplier=1.0, epsilon=8.0)


def told(rounds: Sequence[RoundMetrics]) -> list[dict[str, Any]]:
    """All that is said of rounds, but how long things took."""
    names = [f.name for f in fields(RoundMetrics) if f.name not in CLOCKS]
    return [{name: getattr(m, name) for name in names} for m in rounds]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"eval_every": 2},
        {"mode": "cyclic"},
        {"mode": "scatter"},
        {"secure": AggregationConfig(kind="shares"), "dropout": 0.2},
        {"detect": DetectConfig(score=True)},
        {"sampling": "poisson", "fraction": 0.08, "privacy": NOISE},  # rounds without a client
    ],
    ids=str,
)
def test_the_same_rounds_and_bits(tmp_path: Path, how: dict[str, Any]) -> None:
    config = config_of(tmp_path, 3, **{"rounds": 5, "epochs": 1} | how)
    expected = play_alone(config, 3)
    found = play_alone(
        replace(config, federated=replace(config.federated, overlap_evaluation=True)), 3
    )
    assert told(found.rounds) == told(expected.rounds)
    assert bits(found.model) == bits(expected.model)
    check_phases(found.rounds)


def test_every_world(world: World, folder: Path) -> None:
    def scenario(crew: Crew) -> None:
        config = config_of(folder, len(crew.ranks), rounds=3, epochs=1)
        expected = play(config, crew)
        overlapped = replace(config.federated, overlap_evaluation=True)
        found = play(replace(config, federated=overlapped), crew)
        # A worker's counters run on from job to job.
        quiet = [
            [replace(m, bytes_sent=0, messages_sent=0) for m in played.rounds]
            for played in (found, expected)
        ]
        assert told(quiet[0]) == told(quiet[1])
        assert bits(found.model) == bits(expected.model)

    world.lead(scenario)


def test_a_spent_budget_ends_a_job_with_an_evaluation(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2, rounds=50, epochs=1, fraction=1.0, privacy=LIMITED)
    expected = play_alone(config, 2).rounds
    overlapped = replace(config.federated, overlap_evaluation=True)
    found = play_alone(replace(config, federated=overlapped), 2).rounds
    assert told(found) == told(expected)
    assert len(found) < 50
    assert found[-1].stopped
    assert found[-1].test_metric is not None


def test_all_rounds_but_the_last_are_evaluated_while_workers_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[bool] = []
    evaluate = job_module.evaluate

    def watched(*arguments: Any) -> Any:
        busy.append(crew.busy)
        return evaluate(*arguments)

    monkeypatch.setattr(job_module, "evaluate", watched)
    config = config_of(tmp_path, 2, rounds=4, overlap_evaluation=True)
    with in_process_crew(2) as crew:
        play(config, crew)
    assert busy == [True, True, True, False]


def test_a_round_stays_on_record_when_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Averaging._send

    def failing(self: Averaging, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        if number == 3:
            raise FedMPIError("round 3 cannot begin")
        return send(self, number, cohort, lr)

    monkeypatch.setattr(Averaging, "_send", failing)
    rounds: list[RoundMetrics] = []
    with in_process_crew(2) as crew:
        job = Job(config_of(tmp_path, 2, rounds=4, overlap_evaluation=True), crew)
        with pytest.raises(FedMPIError, match="round 3 cannot begin"):
            job.run(Observer(rounds.append, lambda clients: None))
    assert [(m.round, m.test_metric is None) for m in rounds] == [(1, False), (2, True)]
