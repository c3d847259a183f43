"""Modules and optimisers on pointers: ordinary training code, the same bits as here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedmpi
from fedmpi.tensors import calls
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import bits, lead


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 0.01)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, foreach=True)


Make = Callable[[nn.Module], torch.optim.Optimizer]


def train(model: nn.Module, x: Any, y: Any, make: Make, steps: int) -> Any:
    """The last loss; the same code for tensors here and elsewhere."""
    optimizer = make(model)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.detach()


def assert_trains_alike(
    worker: RemoteWorker, model: nn.Module, x: torch.Tensor, make: Make
) -> None:
    y = torch.arange(len(x)) % 3
    there, here = worker.send(model), copy.deepcopy(model)
    found = train(there, worker.send(x), worker.send(y), make, 6)
    expected = train(here, x, y, make, 6)
    assert bits(found.get()) == bits(expected)
    back = fedmpi.get(there)
    for (name, a), (_, b) in zip(back.state_dict().items(), here.state_dict().items(), strict=True):
        assert bits(a) == bits(b), name
    here.eval()
    there.eval()
    assert bits(there(worker.send(x)).get()) == bits(here(x))


@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_an_mlp_trains_to_the_same_bits(make: Make, world: World) -> None:
    torch.manual_seed(1)
    model, x = mlp(), torch.randn(12, 6)
    lead(world, lambda workers: assert_trains_alike(workers[-1], model, x, make))


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_cnn_with_batch_norm_trains_to_the_same_bits(make: Make, world: World) -> None:
    torch.manual_seed(1)
    model, x = cnn(), torch.randn(5, 1, 8, 8)
    lead(world, lambda workers: assert_trains_alike(workers[0], model, x, make))


def test_models_on_several_workers_train_side_by_side() -> None:
    torch.manual_seed(1)
    model, x, y = mlp(), torch.randn(12, 6), torch.arange(12) % 3
    with fedmpi.simulate(3) as workers:
        models = [worker.send(model) for worker in workers]
        losses = [
            train(there, w.send(x + w.rank), w.send(y), sgd, 3)
            for w, there in zip(workers, models, strict=True)
        ]
        for worker, there, loss in zip(workers, models, losses, strict=True):
            here = copy.deepcopy(model)
            assert bits(loss.get()) == bits(train(here, x + worker.rank, y, sgd, 3))
            assert bits(fedmpi.get(there)[0].weight) == bits(here[0].weight)


def test_a_sent_module_is_a_copy_with_parameters_and_tied_tensors() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    with fedmpi.simulate(1) as (alice,):
        there = alice.send(model)
        assert type(model[0].weight.data) is torch.Tensor
        assert there[1].weight is there[0].weight
        assert isinstance(there[1].weight, nn.Parameter)
        assert [p.requires_grad for p in there.parameters()] == [True, False, True]
        other = copy.deepcopy(there)
        assert other[1].weight is other[0].weight
        other[0].weight.data.zero_()
        assert bits(fedmpi.get(there)[1].weight) == bits(model[1].weight)
        assert not fedmpi.get(other)[1].weight.any()
        assert len(alice.objects()) == 2 * 6  # the tied weight once


def owned(worker: RemoteWorker) -> tuple[int, ...]:
    """What an owner and a worker keep for each other, counted."""
    link = worker.link
    worker.wait()
    worker.wait()  # the dead of the first wait are gone with the second
    return (len(worker.objects()), worker.nbytes(), len(link._users), len(calls._known))


def steps(worker: RemoteWorker, number: int) -> Callable[[], None]:
    model, x, y = worker.send(mlp()), worker.send(torch.randn(12, 6)), torch.arange(12) % 3
    target, optimizer = worker.send(y), adam(model)

    def run() -> None:
        for _ in range(number):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()

    return run


def test_training_keeps_nothing_of_past_steps() -> None:
    with fedmpi.simulate(1) as (alice,):
        run = steps(alice, 100)
        run()
        before = owned(alice)
        for _ in range(4):
            run()
        assert owned(alice) == before
        assert alice.link.dead == []


@pytest.mark.long
def test_ten_thousand_steps_take_no_more_memory_than_the_first() -> None:
    process = psutil.Process()
    with fedmpi.simulate(1) as (alice,):
        run = steps(alice, 1000)
        run()
        run()
        before, resident = owned(alice), process.memory_info().rss
        for _ in range(8):
            run()
        assert owned(alice) == before
        assert process.memory_info().rss - resident < 20 * 2**20
