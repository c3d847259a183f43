"""Whole jobs: against the slow reference, and to the bit between workers, modes and topologies."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.config import CommConfig, Config, Recipe
from fedmpi.errors import RemoteError, UsageError
from fedmpi.federated import rounds
from fedmpi.federated.commands import Ready
from fedmpi.federated.datasets import _home
from fedmpi.federated.evaluate import batches, evaluate
from fedmpi.workers.command import Command
from fedmpi.workers.crew import Crew
from tests.comm.worlds import World
from tests.federated import reference
from tests.federated.lab import (
    bits,
    check_phases,
    config_of,
    furthest,
    known,
    play,
    play_alone,
    with_path,
)

OWN = "tests.federated.factories:"

CPU = torch.device("cpu")


# ---- the order of messages ----


def test_the_commands_of_a_round_go_ahead_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    tell_all, send_model = Crew.tell_all, rounds.broadcast

    def telling(self: Crew, ranks: Iterable[int], command: Command, *more: Any) -> None:
        sent.append(type(command).__name__)
        tell_all(self, ranks, command, *more)

    def sending(*arguments: Any) -> None:
        sent.append("the model")
        send_model(*arguments)

    monkeypatch.setattr(Crew, "tell_all", telling)
    monkeypatch.setattr(rounds, "broadcast", sending)
    play_alone(config_of(tmp_path, 2, rounds=2, fraction=1.0), 2)
    first = sent.index("Broadcast")
    each = ["Broadcast", "Train", "Train", "ReduceSum", "Report", "the model"]
    assert sent[first : first + 12] == each * 2


# ---- against the reference ----


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("2nn", {"rounds": 4}),
        ("softmax", {"rounds": 3, "batch_size": "full", "fraction": 1.0, "lr": 0.5}),
        ("softmax", {"rounds": 3, "fraction": 0.01}),  # one client a round
        (OWN + "small_resnet", {"batch_size": 9, "epochs": 1}),
        (OWN + "dropout", {"batch_size": 9}),
        (OWN + "mixed", {"rounds": 3}),
    ],
    ids=lambda value: str(value).replace(OWN, ""),
)
def test_averaging_agrees_with_the_slow_reference(tmp_path: Path, model: str, how: dict) -> None:
    config = config_of(tmp_path, 3, model=model, **how)
    played = play_alone(config, 3)
    start = known(config)
    losses = reference.fed_avg(
        start.model, start.clients, start.cohorts, config.federated, start.classes, config.seed
    )
    # bfloat16 parameters are averaged from updates in bfloat16.
    assert furthest(played.model, start.model) <= (2e-2 if "mixed" in model else 1e-5)
    assert [m.train_loss for m in played.rounds] == pytest.approx(losses, rel=1e-4)
    assert [m.clients for m in played.rounds] == [len(c) for c in start.cohorts]
    assert [m.examples for m in played.rounds] == [
        sum(len(start.clients[c][1]) for c in cohort) for cohort in start.cohorts
    ]
    found = evaluate(start.model, batches(*start.test), start.classes, CPU)
    assert played.rounds[-1].test_loss == pytest.approx(found.loss, rel=1e-3)


def test_counters_and_flags_of_a_state_are_averaged(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2, model=OWN + "mixed", rounds=1, fraction=1.0, epochs=3)
    played = play_alone(config, 2)
    sizes = [len(y) for _, y in known(config).clients.values()]
    state = played.model.state_dict()
    mean = sum(3 * n * n for n in sizes) / sum(sizes)  # each client saw its rows three times
    assert abs(int(state["seen"]) - mean) <= 0.5
    assert state["started"].tolist() == [True, True]
    assert state["unused"].tolist() == [7.0] * 3
    assert state["frozen"].tolist() == [5.0] * 2
    assert torch.equal(state["again.weight"], state["decode.weight"])


def test_what_a_factory_draws_is_the_owners_everywhere(tmp_path: Path) -> None:
    """Random features that no message carries, and constants that cannot be subtracted."""
    config = config_of(tmp_path, 3, model=OWN + "random_features", rounds=3)
    played = play_alone(config, 3)
    start = known(config)
    constants = {n: start.model.state_dict()[n].clone() for n in ("mask", "stamp")}
    reference.fed_avg(
        start.model, start.clients, start.cohorts, config.federated, start.classes, config.seed
    )
    assert [m.excluded for m in played.rounds] == [[]] * 3
    found, expected = played.model.state_dict(), start.model.state_dict()
    assert all(torch.equal(found[name], constants[name]) for name in constants)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "furthest_off"),
    [("2nn", 1e-5), (OWN + "small_resnet", 0.0), (OWN + "dropout", 0.0)],
)
def test_cyclic_is_a_plain_sequential_loop(tmp_path: Path, model: str, furthest_off: float) -> None:
    """To the bit, unless the training step is recorded."""
    config = config_of(tmp_path, 3, model=model, mode="cyclic", batch_size=9)
    played = play_alone(config, 3)
    start = known(config)
    reference.cyclic(
        start.model, start.clients, start.cohorts, config.federated, start.classes, config.seed
    )
    assert furthest(played.model, start.model) <= furthest_off
    assert (bits(played.model) == bits(start.model)) == (not furthest_off)


def test_regression_agrees_with_the_slow_reference(tmp_path: Path) -> None:
    recipe = Recipe(source="diabetes", clients=5)
    config = config_of(tmp_path, 2, recipe, model="linear", rounds=5, lr=0.05)
    played = play_alone(config, 2)
    start = known(config)
    reference.fed_avg(start.model, start.clients, start.cohorts, config.federated, 0, config.seed)
    assert furthest(played.model, start.model) <= 1e-5
    assert {m.metric for m in played.rounds} == {"r2"}
    assert played.rounds[-1].test_metric > 0.3


# ---- the same bits, however it runs ----


@pytest.mark.parametrize("mode", ["shards", "scatter", "cyclic"])
def test_every_world_gives_the_bits_of_one_worker(world: World, folder: Path, mode: str) -> None:
    """The signature of the product; tests/test_same_bits.py holds it over real launches."""

    def scenario(crew: Crew) -> None:
        workers = len(crew.ranks)
        alone = config_of(folder, 1, mode="cyclic" if mode == "cyclic" else "shards")
        expected = bits(play_alone(alone, 1).model)
        config = config_of(folder, workers, mode=mode)
        assert bits(play(config, crew).model) == expected
        star = replace(config, comm=CommConfig(topology="star", chunk_kib=64))
        assert bits(play(star, crew).model) == expected
        with pytest.MonkeyPatch.context() as patch:
            made_up = [rank % 2 for rank in (0, *crew.ranks)]
            patch.setattr(crew.endpoint.transport, "nodes", made_up)
            assert bits(play(config, crew).model) == expected

    world.lead(scenario)


@pytest.mark.parametrize(
    "model", ["dropout", "small_resnet", "mixed", "batch_norm", "random_features"]
)
@pytest.mark.parametrize("mode", ["shards", "cyclic"])
def test_random_and_counting_models_have_the_same_bits_too(
    tmp_path: Path, model: str, mode: str
) -> None:
    alone = config_of(tmp_path, 1, model=OWN + model, mode=mode, batch_size=9)
    first = play_alone(alone, 1)
    second = play_alone(with_path(alone, tmp_path, 3), 3)
    assert bits(first.model) == bits(second.model)
    assert [m.train_loss for m in first.rounds] == [m.train_loss for m in second.rounds]
    assert [m.test_loss for m in first.rounds] == [m.test_loss for m in second.rounds]


def test_seeds_differ_and_a_seed_repeats(tmp_path: Path) -> None:
    found = [bits(play_alone(config_of(tmp_path, 2, seed=s), 2).model) for s in (0, 1, 0)]
    assert found[0] == found[2] != found[1]


# ---- what is told of a job ----


def test_metrics_of_a_job(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3, rounds=5, eval_every=2, lr=0.2, lr_decay=0.5)
    played = play_alone(config, 3)
    rounds = played.rounds
    assert [m.round for m in rounds] == [1, 2, 3, 4, 5]
    assert [m.lr for m in rounds] == [0.2, 0.1, 0.05, 0.025, 0.0125]
    assert [m.test_metric is not None for m in rounds] == [False, True, False, True, True]
    assert [m.test_loss is not None for m in rounds] == [False, True, False, True, True]
    assert {m.metric for m in rounds} == {"accuracy"}
    assert [m.excluded for m in rounds] == [[]] * 5
    x, y = known(config).test
    assert rounds[-1].test_metric == evaluate(played.model, batches(x, y), 10, CPU).metric
    # The model goes down to every worker of the round and a sum comes up from it.
    state = sum(t.numel() for t in played.model.state_dict().values())
    for m in rounds:
        workers = m.bytes_sent // (4 * state + 8 * state)
        assert 1 <= workers <= 3
        assert 0 < m.bytes_sent - workers * 12 * state < 4096
        assert m.messages_sent > 2 * workers


@pytest.mark.parametrize("mode", ["shards", "scatter", "cyclic"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_seconds_of_the_phases_add_up(tmp_path: Path, mode: str, workers: int) -> None:
    config = config_of(tmp_path, workers, mode=mode, rounds=4)
    rounds = play_alone(config, workers).rounds
    check_phases(rounds)
    for m in rounds:
        assert set(m.phases) == {"broadcast", "train", "aggregate", "evaluate", "wait"}
        assert 0 < m.train_max <= m.seconds


def test_a_job_stops_at_its_target(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2, rounds=30, lr=0.2, fraction=1.0, target_accuracy=0.6)
    accuracies = [m.test_metric for m in play_alone(config, 2).rounds]
    assert accuracies[-1] >= 0.6
    assert all(a < 0.6 for a in accuracies[:-1])
    assert len(accuracies) < 30


def test_clients_are_evaluated_on_their_own_rows(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3, rounds=3, eval_every=2, evaluate_clients=True)
    played = play_alone(config, 3)
    assert [{m.round for m in clients} for clients in played.clients] == [{2}, {3}]
    rows = known(config).clients
    for clients in played.clients:
        assert [m.client for m in clients] == sorted(rows)
        assert {m.rank for m in clients} == {1, 2, 3}
    for m in played.clients[-1]:
        x, y = rows[m.client]
        found = evaluate(played.model, batches(x, y), 10, CPU)
        assert (m.rows, m.loss, m.metric) == (len(y), found.loss, found.metric)
    # It changes nothing of the training.
    plain = replace(config, federated=replace(config.federated, evaluate_clients=False))
    without = play_alone(plain, 3)
    assert bits(without.model) == bits(played.model)
    assert without.clients == []


def test_shards_for_another_number_of_workers_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3)
    with pytest.raises(UsageError, match=r"3 shards in .* but 2 workers: run with mpirun -n 4"):
        play_alone(config, 2)


def test_a_client_too_small_for_batch_norm_is_refused(tmp_path: Path) -> None:
    site = np.minimum(np.arange(100), 3)  # clients 0, 1 and 2 have one row each
    arrays = {"x": np.zeros((100, 4), np.float32), "y": np.arange(100) % 2}
    test = {"x_test": arrays["x"], "y_test": arrays["y"]}
    np.savez(tmp_path / "small.npz", **arrays, **test, site=site)
    recipe = Recipe(source=str(tmp_path / "small.npz"), partition="natural", by="site")
    config = config_of(tmp_path, 2, recipe, model=OWN + "batch_norm")
    with pytest.raises(RemoteError, match=r"client \d has 1 row, but model .*batch_norm trains on"):
        play_alone(config, 2)
    play_alone(replace(config, model=OWN + "dropout"), 2)


def test_workers_on_two_kinds_of_device_are_refused() -> None:
    crew = SimpleNamespace(ranks=range(1, 4))
    replies = [Ready([k], [5], [1], device) for k, device in enumerate(("cuda:0", "cpu", "cuda:1"))]
    with pytest.raises(UsageError, match=r"\(cpu on rank 2, cuda on rank \d\), which round"):
        _home(Config(), crew, replies)
    home = _home(Config(), crew, [Ready([k, k + 3], [5, 6], [1, 1], f"cuda:{k}") for k in range(3)])
    assert home.rank == {0: 1, 3: 1, 1: 2, 4: 2, 2: 3, 5: 3}
    assert home.rows == {0: 5, 3: 6, 1: 5, 4: 6, 2: 5, 5: 6}


def test_options_that_the_shards_contradict_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2)
    other = replace(config, data=replace(config.data, clients=15))
    with pytest.raises(UsageError, match=r"clients = 15, but .* was prepared with 14: leave"):
        play_alone(other, 2)


def test_a_target_accuracy_of_a_regression_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(source="diabetes", clients=5)
    config = config_of(tmp_path, 1, recipe, model="linear", target_accuracy=0.5)
    with pytest.raises(UsageError, match=r"target_accuracy = 0\.5 with a regression"):
        play_alone(config, 1)


def test_a_job_says_how_to_do_it_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2, comm=CommConfig(workers="auto", chunk_kib=4))
    bare = replace(config, data=replace(type(config.data)(), path=config.data.path))
    resolved = play_alone(bare, 2).job.config
    assert resolved == replace(config, comm=replace(config.comm, workers=2))


def test_two_jobs_on_one_crew(world: World, folder: Path) -> None:
    """The second finds the workers' stores full of the first."""

    def scenario(crew: Crew) -> None:
        workers = len(crew.ranks)
        first = config_of(folder, workers)
        other = config_of(folder, workers, model="softmax", seed=1, mode="cyclic")
        expected = bits(play(first, crew).model)
        play(other, crew)
        assert bits(play(first, crew).model) == expected

    world.lead(scenario)


def test_the_owners_model_is_trained_in_place(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1, model="softmax", rounds=1)
    played = play_alone(config, 1)
    before = deepcopy(known(config).model)
    assert played.job.model is played.model
    assert furthest(played.model, before) > 1e-3
