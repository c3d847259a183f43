"""Clients go evenly to workers, and no bit depends on who trains whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.config import (
    AggregationConfig,
    AttackConfig,
    CommConfig,
    Config,
    DetectConfig,
    FederatedConfig,
    PrivacyConfig,
    RobustConfig,
    StrategyConfig,
)
from fedmpi.errors import RemoteError
from fedmpi.federated import averaging
from fedmpi.federated.averaging import Averaging
from fedmpi.federated.placement import may_lend, saved_rows, spread
from fedmpi.workers.crew import Crew
from tests.comm.worlds import World
from tests.federated.lab import bits, config_of, play, play_alone, with_path

ALONE = CommConfig(balance="off")


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("clients", [1, 2, 10, 100])
@pytest.mark.parametrize("alike", [True, False])
def test_nobody_has_more_than_a_share_and_one_client(
    clients: int, workers: int, alike: bool
) -> None:
    draws = np.random.default_rng(clients * workers)
    ranks = range(1, workers + 1)
    for _ in range(20):
        cohort = sorted(draws.choice(1000, clients, replace=False).tolist())
        rows = {c: 600 if alike else int(draws.integers(1, 2000)) for c in cohort}
        holder = {c: 1 + c * workers // 1000 for c in cohort}
        placed = spread(cohort, rows, holder, ranks)
        assert sorted(placed) == cohort
        assert set(placed.values()) <= set(ranks)
        load: Counter[int] = Counter()
        for client, rank in placed.items():
            load[rank] += rows[client]
        largest = max(rows.values())
        share = sum(rows.values()) / workers
        assert max(load.values()) <= max(1.05 * share, share + largest)
        if alike:
            assert max(load.values()) <= max(600 * -(-clients // workers), 1.05 * share)


def test_clients_stay_where_they_are_if_that_is_even() -> None:
    holder = {c: 1 + c % 3 for c in range(12)}
    assert spread(range(12), dict.fromkeys(range(12), 5), holder, [1, 2, 3]) == holder
    # A twentieth more is not worth a reading.
    rows = {c: 100 + c % 3 for c in range(12)}
    assert spread(range(12), rows, holder, [1, 2, 3]) == holder


def test_a_worker_that_has_died_gets_nobody() -> None:
    placed = spread(range(6), dict.fromkeys(range(6), 1), dict.fromkeys(range(6), 3), [1, 3])
    assert Counter(placed.values()) == {1: 3, 3: 3}


@pytest.mark.parametrize(
    ("federated", "rest"),
    [
        ({}, {"comm": ALONE}),
        ({"mode": "cyclic"}, {}),
        ({"mode": "scatter"}, {}),
        ({"privacy": PrivacyConfig(kind="local", noise_multiplier=1.0)}, {}),
        ({"strategy": StrategyConfig("scaffold")}, {}),
        ({}, {"attack": AttackConfig(kind="sign_flip", clients=0.2)}),
    ],
)
def test_what_stays_with_a_worker_is_not_lent(
    federated: dict[str, Any], rest: dict[str, Any]
) -> None:
    assert may_lend(Config())
    assert not may_lend(Config(federated=FederatedConfig(**federated), **rest))


# ---- jobs ----


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clients that have been lent, round by round."""
    found: list[int] = []
    original = Averaging._lend

    def watched(self: Averaging, rank: int, clients: list[int]) -> None:
        found.extend(c for c in clients if self.home.rank[c] != rank)
        original(self, rank, clients)

    monkeypatch.setattr(Averaging, "_lend", watched)
    return found


def even(config: Config) -> Config:
    return shifted(config, balance="on")


def shifted(config: Config, **comm: Any) -> Config:
    return replace(config, comm=replace(config.comm, **comm))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"dropout": 0.3, "secure": AggregationConfig(kind="shares")},
        {"robust": RobustConfig(kind="median")},
        {"detect": DetectConfig(score=True)},
        {"strategy": StrategyConfig("fedprox"), "momentum": 0.5},
        {"privacy": PrivacyConfig(kind="central", noise_multiplier=1.0), "sampling": "poisson"},
    ],
    ids=str,
)
def test_the_same_bits_whoever_trains(tmp_path: Path, how: dict[str, Any], lent: list[int]) -> None:
    config = config_of(tmp_path, 3, **{"rounds": 4, "epochs": 1, "fraction": 0.4} | how)
    alone = play_alone(shifted(config, balance="off"), 3)
    assert lent == []
    found = play_alone(even(config), 3)
    assert lent
    assert bits(found.model) == bits(alone.model)
    assert [m.train_loss for m in found.rounds] == [m.train_loss for m in alone.rounds]


@pytest.mark.parametrize(("worth", "lends"), [(0.0, True), (1e6, False)])
def test_what_saves_too_little_is_left_alone(
    tmp_path: Path, worth: float, lends: bool, lent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "WORTH_SECONDS", worth)
    play_alone(config_of(tmp_path, 3, rounds=4, epochs=1, fraction=0.4), 3)
    assert bool(lent) == lends


def test_saved_rows_are_those_of_the_fullest_worker() -> None:
    holder, rows = {0: 1, 1: 1, 2: 1, 3: 2}, {0: 5, 1: 6, 2: 7, 3: 1}
    assert saved_rows(holder, rows, holder) == 0
    assert saved_rows(holder | {2: 2}, rows, holder) == 18 - 11


def test_clients_are_evaluated_where_they_are(tmp_path: Path, lent: list[int]) -> None:
    config = config_of(tmp_path, 3, rounds=2, fraction=0.4, evaluate_clients=True)
    found = play_alone(even(config), 3)
    assert lent
    for metrics in found.clients:
        assert [m.client for m in metrics] == sorted(found.job.home.rank)
        assert [m.rank for m in metrics] == [found.job.home.rank[m.client] for m in metrics]


def test_every_world_lends(world: World, folder: Path) -> None:
    def scenario(crew: Crew) -> None:
        workers = len(crew.ranks)
        config = with_path(config_of(folder, workers, rounds=3, epochs=1), folder, workers)
        expected = bits(play(shifted(config, balance="off"), crew).model)
        assert bits(play(even(config), crew).model) == expected

    world.lead(scenario)


def test_folders_that_are_not_shared_are_no_harm(tmp_path: Path, lent: list[int]) -> None:
    """Each worker then sees its own shard alone, as on the disks of many nodes."""
    config = even(config_of(tmp_path, 3, rounds=2, epochs=1, fraction=0.4))
    expected = bits(play_alone(config, 3).model)
    assert lent
    lent.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmpi.data.visits.Visits.possible", False)
        assert bits(play_alone(config, 3).model) == expected
    assert lent == []


def test_a_shard_that_vanishes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = even(config_of(tmp_path, 3, rounds=4, epochs=1, fraction=0.4))
    original = Averaging._lend

    def gone(self: Averaging, rank: int, clients: list[int]) -> None:
        original(self, rank, clients)
        for shard in Path(config.data.path).glob("shard*"):
            shard.unlink(missing_ok=True)

    monkeypatch.setattr(Averaging, "_lend", gone)
    with pytest.raises(RemoteError, match=r"shard.*: .*(No such file|does not exist|not found)"):
        play_alone(config, 3)
