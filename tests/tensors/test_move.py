"""A module moves from worker to worker."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.errors import RemoteError, UsageError


def net() -> nn.Module:
    """With a buffer, an integer one, and a tied parameter."""
    torch.manual_seed(3)
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm1d(4), last)


def test_a_moved_module_computes_and_trains_as_it_would_here() -> None:
    here, x = net(), torch.randn(8, 4)
    with fedmpi.simulate(workers=2) as (alice, bob):
        there = alice.send(copy.deepcopy(here))
        step(there, alice.send(x))
        there = fedmpi.move(there, bob)
        step(there, bob.send(x))
        assert {p.rank for p in there.parameters()} == {bob.rank}
        assert {b.rank for b in there.buffers()} == {bob.rank}
        assert there[0].weight is there[2].weight
        found = fedmpi.get(there).state_dict()
    step(here, x)
    step(here, x)
    for name, expected in here.state_dict().items():
        torch.testing.assert_close(found[name], expected)


def step(model: nn.Module, x: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_nothing_of_a_moved_module_stays_behind() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):
        before = alice.send(net())
        size = alice.nbytes()
        after = fedmpi.move(before, bob)
        assert (alice.nbytes(), bob.nbytes()) == (0, size)
        with pytest.raises(RemoteError, match="rank 1 holds no object"):
            next(before.parameters()).get()
        assert next(after.parameters()).requires_grad


def test_a_module_that_was_not_sent_cannot_move() -> None:
    with (
        fedmpi.simulate(workers=1) as (alice,),
        pytest.raises(UsageError, match="send the module first"),
    ):
        fedmpi.move(net(), alice)
