"""Clients that train together: the losses and weights of a plain loop, and each one's own bits."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.config import Config, FederatedConfig, StrategyConfig
from fedmpi.data.shard import Batch
from fedmpi.federated import client_stack
from fedmpi.federated.client_stack import ClientStack, stack_size
from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.record_training import record_training
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.building import NotStackable
from fedmpi.workers.program import Program
from fedmpi.workers.stacked import Stacked
from tests.federated.lab import bits, config_of, furthest, play_alone, with_path
from tests.federated.reference import batches, client_update

SHAPE = (1, 8, 8)
SIZES = [
    ([20, 20, 20], 10),
    ([37, 31, 30, 10, 4, 1], 10),
    ([12, 12, 5], None),
    ([3, 2, 1], 1),
    ([50], 7),
]
"""Rows of the clients and batch: all alike, all unlike, full, of one row, one client alone."""


def tanh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def built(name: str) -> nn.Module:
    torch.manual_seed(5)
    return tanh() if name == "tanh" else models.build(name, SHAPE, classes_of(name))


def classes_of(name: str) -> int:
    return 0 if name == "linear" else 10


def stack_of(model: nn.Module, name: str, most: int, descent: Descent = PLAIN) -> ClientStack:
    classes = classes_of(name)
    programs = record_training(model, models.task_loss(classes), SHAPE, classes, descent)
    assert programs
    y = torch.zeros(1, dtype=torch.int64 if classes else torch.float32)
    return ClientStack(model, programs, most, (torch.zeros(1, *SHAPE), y), descent)


def clients_of(name: str, rows: Sequence[int]) -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    x = [torch.randn(n, *SHAPE, generator=draws) for n in rows]
    if classes_of(name):
        y = [torch.randint(0, 10, (n,), generator=draws) for n in rows]
    else:
        y = [torch.randn(n, generator=draws) for n in rows]
    return list(zip(x, y, strict=True))


def trained(
    name: str,
    clients: Sequence[Batch],
    seeds: Sequence[int],
    batch: int | None,
    most: int,
    smallest: int = 1,
    descent: Descent = PLAIN,
) -> list[tuple[float, nn.Module]]:
    """Loss and model of each client, of which at most so many train together."""
    torch.set_num_threads(1)
    model = built(name)
    stack, start = stack_of(model, name, most, descent), deepcopy(model.state_dict())
    found = []
    for first in range(0, len(clients), most):
        group = slice(first, first + most)
        model.load_state_dict(start)
        losses = stack.train(
            clients[group],
            seeds[group],
            [drift_of(model, seed) for seed in seeds[group]] if descent.drifts else (),
            epochs=2,
            batch_size=batch,
            smallest_batch=smallest,
            lr=0.05,
        )
        for k, loss in enumerate(losses):
            stack.store(k)
            found.append((loss, deepcopy(model)))
    return found


@pytest.mark.parametrize(("rows", "batch"), SIZES)
@pytest.mark.parametrize("name", ["2nn", "softmax", "linear"])
def test_each_client_is_that_of_a_plain_loop(name: str, rows: list[int], batch: int | None) -> None:
    clients, seeds = clients_of(name, rows), range(len(rows))
    how = FederatedConfig(epochs=2, batch_size=batch or "full", lr=0.05)
    for (loss, model), rows_of, seed in zip(
        trained(name, clients, seeds, batch, len(rows)), clients, seeds, strict=True
    ):
        plain = built(name)
        draws = {"shuffle": seed, "dropout": 0}
        expected = client_update(plain, rows_of, how, 0.05, classes_of(name), draws)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert furthest(model, plain) < 2e-6


def drift_of(model: nn.Module, seed: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draws) / 8 for p in model.parameters()]


@pytest.mark.parametrize(
    "descent",
    [
        Descent(momentum=0.9),
        Descent(decay=0.1, drifts=True),
        Descent(momentum=0.5, decay=0.1, drifts=True),
    ],
    ids=["momentum", "decay and drift", "all"],
)
@pytest.mark.parametrize(("rows", "batch"), SIZES)
def test_each_client_has_a_momentum_and_a_drift_of_its_own(
    rows: list[int], batch: int | None, descent: Descent
) -> None:
    clients, seeds = clients_of("2nn", rows), range(len(rows))
    alone = trained("2nn", clients, seeds, batch, 1, descent=descent)
    together = trained("2nn", clients, seeds, batch, len(rows), descent=descent)
    assert [(loss, bits(m)) for loss, m in together] == [(loss, bits(m)) for loss, m in alone]
    for (_, model), rows_of, seed in zip(alone, clients, seeds, strict=True):
        plain = built("2nn")
        pull = drift_of(plain, seed) if descent.drifts else [0.0] * len(list(plain.parameters()))
        options = {"momentum": descent.momentum, "weight_decay": descent.decay}
        optimizer = torch.optim.SGD(plain.parameters(), 0.05, **options)
        how = FederatedConfig(epochs=2, batch_size=batch or "full")
        for x, y in batches(rows_of, how, {"shuffle": seed}):
            optimizer.zero_grad()
            models.task_loss(10)(plain(x), y).backward()
            for p, added in zip(plain.parameters(), pull, strict=True):
                assert p.grad is not None
                p.grad += added
            optimizer.step()
        assert furthest(model, plain) < 1e-5


@pytest.mark.parametrize(("rows", "batch"), SIZES)
@pytest.mark.parametrize("name", ["2nn", "softmax", "linear"])
def test_no_bit_depends_on_who_trains_beside(name: str, rows: list[int], batch: int | None) -> None:
    clients, seeds = clients_of(name, rows), range(len(rows))
    alone = trained(name, clients, seeds, batch, 1)
    for most in (2, len(rows)):
        for one, other in zip(alone, trained(name, clients, seeds, batch, most), strict=True):
            assert one[0] == other[0]
            assert bits(one[1]) == bits(other[1])
    turned = trained(name, clients[::-1], seeds[::-1], batch, len(rows))
    assert [bits(model) for _, model in turned[::-1]] == [bits(model) for _, model in alone]


def test_last_batches_that_join_the_one_before() -> None:
    clients = clients_of("2nn", [21, 20, 11])
    together, alone = (trained("2nn", clients, range(3), 10, most, smallest=2) for most in (3, 1))
    assert [(loss, bits(m)) for loss, m in together] == [(loss, bits(m)) for loss, m in alone]


def test_a_client_that_diverges_spoils_nobody() -> None:
    clients = clients_of("2nn", [20, 20, 20])
    honest = trained("2nn", clients, range(3), 10, 3)
    clients[1][0][7] = float("nan")
    spoiled = trained("2nn", clients, range(3), 10, 3)
    assert spoiled[1][0] != spoiled[1][0]
    for k in (0, 2):
        assert spoiled[k][0] == honest[k][0]
        assert bits(spoiled[k][1]) == bits(honest[k][1])


def test_stacks_that_would_change_bits_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = clients_of("2nn", [20, 20, 15])
    expected = trained("2nn", clients, range(3), 10, 1)
    tried: list[int] = []

    def differs(stack: ClientStack, x: torch.Tensor, y: torch.Tensor) -> bool:
        tried.append(len(y))
        return False

    monkeypatch.setattr(ClientStack, "_try", differs)
    found = trained("2nn", clients, range(3), 10, 3)
    assert tried == [3, 2]
    assert [bits(model) for _, model in found] == [bits(model) for _, model in expected]


def test_the_trial_finds_a_stack_whose_clients_are_not_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    stack = stack_of(built("2nn"), "2nn", 3)
    x, y = (torch.stack(part) for part in zip(*clients_of("2nn", [10] * 3), strict=True))
    assert stack._try(x, y)

    class Wrong(Stacked):
        def __call__(self, *others: Any) -> None:
            super().__call__(*others)
            if len(others[1]) > 1:
                others[2][1].add_(2.0**-40)

    monkeypatch.setattr(client_stack, "Stacked", Wrong)
    assert not stack._try(x, y)


@pytest.mark.parametrize(("name", "operator"), [("cnn", "convolution"), ("tanh", "tanh")])
def test_models_that_are_not_stacked(name: str, operator: str) -> None:
    with pytest.raises(NotStackable, match=operator):
        stack_of(built(name), name, 2)


def test_groups_are_of_clients_of_like_size_and_fit_in_memory() -> None:
    stack = stack_of(built("softmax"), "softmax", 3)
    assert list(stack.groups([5, 9, 9, 1, 7], 4)) == [[1, 2, 4], [0, 3]]
    large = client_stack.ROWS_BYTES // 2
    assert list(stack.groups([1, 1, 1], large)) == [[0, 1], [2]]
    assert list(stack.groups([1, 1], 3 * large)) == [[0], [1]]
    assert list(stack.groups([], 4)) == []


def test_how_many_train_together() -> None:
    assert stack_size("auto", 796_840, 100) == 5
    assert stack_size("auto", 1, 100) == client_stack.MOST
    assert stack_size("auto", 2**30, 100) == 1
    assert stack_size("auto", 1, 2) == 2
    assert stack_size(1, 1, 100) == 1
    assert stack_size(64, 1, 100) == 64


def played(config: Config, workers: int, stack: int | Literal["auto"]) -> dict[str, bytes]:
    config = replace(config, compute=replace(config.compute, stack=stack))
    return bits(play_alone(config, workers).model)


def test_a_job_has_the_same_bits_stacked_and_on_any_number_of_workers(tmp_path: Path) -> None:
    """Unequal clients, some of which drop out, E = 2."""
    config = config_of(tmp_path, 1, dropout=0.2)
    expected = played(config, 1, 1)
    for workers, stack in ((1, "auto"), (1, 3), (3, "auto"), (7, 4)):
        assert played(with_path(config, tmp_path, workers), workers, stack) == expected


@pytest.mark.parametrize("kind", ["fedprox", "scaffold", "momentum"])
def test_so_has_one_whose_clients_are_pulled(tmp_path: Path, kind: str) -> None:
    how = {"momentum": 0.5} if kind == "momentum" else {"strategy": StrategyConfig(kind=kind)}
    config = config_of(tmp_path, 1, rounds=3, weight_decay=0.01, **how)
    stacked: set[bool] = set()
    learn = Trainer.learn

    def watched(trainer: Trainer, programs: Sequence[Program]) -> None:
        learn(trainer, programs)
        stacked.add(trainer.stack is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "learn", watched)
        expected = played(config, 1, 1)
        assert played(with_path(config, tmp_path, 3), 3, "auto") == expected
    assert stacked == {True}
