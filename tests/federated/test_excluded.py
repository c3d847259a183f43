"""A client that diverges is left out, named, and the others count for the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.config import Config, Recipe
from fedmpi.errors import FedMPIError
from fedmpi.federated.metrics import Excluded
from tests.federated import reference
from tests.federated.lab import BAD, Known, bits, config_of, furthest, known, play_alone


def config_for(spoiled: Recipe, folder: Path, workers: int = 3, **how) -> Config:
    return config_of(folder, workers, spoiled, **{"fraction": 1.0, "lr": 0.05, "rounds": 3, **how})


def without_bad(start: Known) -> list[list[int]]:
    return [[c for c in cohort if c != BAD] for cohort in start.cohorts]


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_the_rest_is_averaged_as_if_it_had_not_been_there(
    spoiled: Recipe, tmp_path: Path, workers: int
) -> None:
    config = config_for(spoiled, tmp_path, workers)
    played = play_alone(config, workers)
    start = known(config)
    assert BAD in start.cohorts[0]
    losses = reference.fed_avg(
        start.model, start.clients, without_bad(start), config.federated, 3, config.seed
    )
    assert furthest(played.model, start.model) <= 1e-5
    for m, loss in zip(played.rounds, losses, strict=True):
        assert (m.clients, m.examples) == (4, sum(len(start.clients[c][1]) for c in (0, 1, 3, 4)))
        assert [e.client for e in m.excluded] == [BAD]
        assert m.excluded[0].rank in range(1, workers + 1)
        assert m.train_loss == pytest.approx(loss, rel=1e-4)


def test_the_bits_do_not_depend_on_the_workers(spoiled: Recipe, tmp_path: Path) -> None:
    found = [play_alone(config_for(spoiled, tmp_path, w), w) for w in (1, 2, 5)]
    assert bits(found[0].model) == bits(found[1].model) == bits(found[2].model)
    reasons = [[e.reason for m in played.rounds for e in m.excluded] for played in found]
    assert reasons[0] == reasons[1] == reasons[2]


@pytest.mark.parametrize("workers", [1, 3])
def test_cyclic_undoes_the_client(spoiled: Recipe, tmp_path: Path, workers: int) -> None:
    config = config_for(spoiled, tmp_path, workers, mode="cyclic")
    played = play_alone(config, workers)
    start = known(config)
    reference.cyclic(
        start.model, start.clients, without_bad(start), config.federated, 3, config.seed
    )
    assert furthest(played.model, start.model) <= 1e-5
    assert [[e.client for e in m.excluded] for m in played.rounds] == [[BAD]] * 3
    assert all(isinstance(e, Excluded) for m in played.rounds for e in m.excluded)


@pytest.mark.parametrize("mode", ["shards", "cyclic"])
def test_a_job_may_stop_at_it(spoiled: Recipe, tmp_path: Path, mode: str) -> None:
    config = config_for(spoiled, tmp_path, mode=mode, on_bad_update="stop")
    with pytest.raises(FedMPIError) as caught:
        play_alone(config, 3)
    said = str(caught.value)
    assert said.startswith(f"round 1: client {BAD} on rank ")
    assert "on_bad_update = 'stop': lower the learning rate (0.05)" in said


@pytest.mark.parametrize("mode", ["shards", "cyclic"])
def test_when_nobody_is_left_the_job_ends(spoiled: Recipe, tmp_path: Path, mode: str) -> None:
    config = config_for(spoiled, tmp_path, mode=mode, lr=1e6, epochs=5)
    with pytest.raises(FedMPIError, match=r"round \d: client \d on rank \d.*no client's update"):
        play_alone(config, 3)
