"""Private objects: they are computed with, and neither they nor their results leave the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedmpi
from fedmpi.errors import RemoteError
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import lead

SECRET = torch.tensor([[3.0, 1.0], [2.0, 4.0]])


def assert_refused(pointer: Any) -> None:
    with pytest.raises(RemoteError, match="private: it does not leave the worker"):
        pointer.get()


def test_private_objects_are_refused_and_others_are_not(world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        worker = workers[-1]
        public = worker.send(torch.ones(2, 2))
        secret = worker.send(SECRET, private=True)
        assert_refused(secret)
        assert_refused(secret + public)
        for fetch in (secret.tolist, secret[0, 0].item, secret.numpy, lambda: bool(secret[0, 0])):
            with pytest.raises(RemoteError, match="private"):
                fetch()
        assert (public + 1).tolist() == [[2.0, 2.0], [2.0, 2.0]]
        found = {one.key: one.private for one in worker.objects()}
        assert (found[public.remote.key], found[secret.remote.key]) == (False, True)

    lead(world, program)


@pytest.mark.parametrize(
    "derive",
    [
        lambda x: x[0],
        lambda x: x.T,
        lambda x: x.detach(),
        lambda x: x.view(-1)[1:],
        lambda x: x.clone(),
        lambda x: x.mean(),
        lambda x: x.argmax(),
        lambda x: x > 2,
        lambda x: x * 0,
        lambda x: x.sort(dim=0).values,
        lambda x: x.sort(dim=0).indices,
        lambda x: torch.cat([torch.zeros_like(x), x]),
        lambda x: F.embedding(x.long(), x.new_ones(6, 2)),
    ],
)
def test_what_comes_of_private_objects_is_private(derive: Callable[[Any], Any]) -> None:
    with fedmpi.simulate(1) as (alice,):
        assert_refused(derive(alice.send(SECRET, private=True)))


@pytest.mark.parametrize(
    "write",
    [
        lambda to, x: to.copy_(x),
        lambda to, x: to.add_(x),
        lambda to, x: to[0].mul_(x[0]),
        lambda to, x: to.__setitem__(slice(0, 1), x[:1]),
        lambda to, x: to.view(-1).__setitem__(0, x.sum()),
        lambda to, x: to.masked_fill_(x > 2, 1.0),
        lambda to, x: to.index_add_(0, x[0].long() % 2, to + 1),
        lambda to, x: torch.add(x, x, out=to),
        lambda to, x: torch._foreach_add_([to], [x]),
        lambda to, x: torch.maximum(x, x, out=to[:]),
    ],
)
def test_what_private_objects_are_written_into_is_private(
    write: Callable[[Any, Any], Any],
) -> None:
    with fedmpi.simulate(1) as (alice,):
        target, other = alice.send(torch.zeros(2, 2)), alice.send(torch.zeros(2, 2))
        view = target[1]
        write(target, alice.send(SECRET, private=True))
        assert_refused(target)
        assert_refused(view)
        assert other.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_views_of_an_object_that_becomes_private_are_private_too() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(SECRET)
        view, copy, result = x[0], x.clone(), x.sum()
        assert x.make_private() is x
        assert_refused(x)
        assert_refused(view)
        assert copy.tolist() == SECRET.tolist()  # made before
        assert float(result) == 10.0


def test_privacy_moves_with_the_object() -> None:
    with fedmpi.simulate(2) as (alice, bob):
        secret = alice.send(SECRET, private=True)
        copied, part = secret.copy(bob), secret[0].copy(bob)
        assert_refused(copied)
        assert_refused(part.sum())
        assert_refused(secret.move(bob) @ copied)
        assert bob.send(torch.ones(1)).tolist() == [1.0]


def test_training_on_private_rows_makes_the_model_private() -> None:
    with fedmpi.simulate(1) as (alice,):
        model = alice.send(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))
        fresh = fedmpi.get(model)[0].weight
        assert fresh.shape == (3, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        loss = model(alice.send(SECRET, private=True)).square().mean()
        loss.backward()
        optimizer.step()
        assert_refused(loss)
        for name, tensor in model.state_dict().items():
            if "num_batches_tracked" not in name:
                assert_refused(tensor)
        assert int(model[1].num_batches_tracked) == 1
