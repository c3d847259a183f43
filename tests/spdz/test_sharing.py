"""share() and reveal(): from the owner, from workers' own data, rows and columns of several."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.spdz.transcripts import recorded, surprise
from tests.tensors.programs import lead

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]

VALUES = {
    "real": torch.tensor([[1.5, -2.25], [0.0, 1e6]]),
    "double": torch.tensor([1.5, -2.25], dtype=torch.float64),
    "half": torch.tensor([1.5, -2.25], dtype=torch.float16),
    "whole": torch.tensor([3, -(2**61)]),
    "byte": torch.tensor([3, 255], dtype=torch.uint8),
    "bit": torch.tensor([True, False]),
    "one number": torch.tensor(3.5),
    "none": torch.zeros(0, 3),
    "a view": torch.arange(12.0).view(3, 4).t()[1:3],
    "long": torch.arange(5000.0),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_is_shared_is_revealed(world: World, kind: str) -> None:
    values = VALUES[kind]

    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        sources = [values, workers[0].send(values), workers[-1].send(values)]
        for what, parties in [(s, workers) for s in sources] + [(sources[2], workers[:-1])]:
            if len(parties) < 2:
                continue
            x = share(what, *parties)
            assert x.dtype == values.dtype
            assert x.shape == values.shape
            found = x.reveal()
            assert found.dtype == values.dtype
            assert torch.equal(found, values)
        there = share(values, *workers).reveal(to=workers[0])
        assert torch.equal(there.get(), values)

    lead(world, program)


def test_rows_and_columns_of_several(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        parts = [torch.full((2, 3), float(w.rank)) for w in workers]
        sent = [w.send(part) for w, part in zip(workers, parts, strict=True)]
        for dim in (0, 1):
            joined = share([*sent, torch.zeros(2, 3)], *workers, dim=dim)
            assert torch.equal(joined.reveal(), torch.cat([*parts, torch.zeros(2, 3)], dim))
        with pytest.raises(UsageError, match="empty list"):
            share([], *workers)

    lead(world, program)


def test_private_rows_of_one_of_them_keep_all_private(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        rows = [workers[0].send(torch.ones(2, 2), private=True), workers[1].send(torch.ones(2, 2))]
        joined = share(rows, *workers)
        with pytest.raises(RemoteError, match="private"):
            joined.reveal()
        with pytest.raises(RemoteError, match="private"):
            joined[2:].reveal()  # type: ignore[attr-defined]
        assert share(rows[1], *workers).reveal().tolist() == [[1.0, 1.0]] * 2

    lead(world, program)


@pytest.mark.parametrize("value", [2.0**30, -float("inf"), float("nan")])
@pytest.mark.parametrize("party", [True, False])
def test_a_workers_values_that_do_not_fit(world: World, value: float, party: bool) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 3:
            return
        parties = workers if party else workers[:-1]
        x = share(workers[-1].send(torch.tensor([0.5, value])), *parties)
        with pytest.raises(RemoteError, match="cannot be shared"):
            (x * x).reveal()  # type: ignore[attr-defined]
        for worker in workers:
            with contextlib.suppress(RemoteError):
                worker.wait()
        y = share(workers[-1].send(torch.tensor([0.5, 2.0])), *parties)
        assert (y * y).reveal().tolist() == [0.25, 4.0]  # type: ignore[attr-defined]

    lead(world, program)


@pytest.mark.parametrize("source", [1, 2, 4])
def test_a_workers_data_reaches_nobody_else(source: int) -> None:
    """Neither rank 0, which knows none of the keys, nor any two of the three parties."""
    n = 64 * 200
    with fedmpi.simulate(4) as workers:
        data = workers[source - 1].send(torch.full((n,), 1.5))
        parties = workers[:3]
        share(torch.ones(1), *parties)
        for worker in workers:
            worker.wait()
        with recorded() as frames:
            share(data, *parties)
            for worker in workers:
                worker.wait()
        sent = [f for f in frames if f.source == source]
        assert not any(f.tensors for f in frames if 0 in (f.source, f.to))
        words = [t for f in sent for t in f.tensors]
        assert len(words) == (source == 4), "keys for all, and the rest to a party or to itself"
        for tensor in words:
            assert surprise(tensor) < 1.6
        keys = [getattr(f.message, "key", b"") for f in sent if f.to in (1, 2, 3)]
        assert len(set(filter(None, keys))) == 2


def test_a_modules_tensors(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        there = share(model, *workers)
        for ours, theirs in zip(there.parameters(), model.parameters(), strict=True):
            assert ours.requires_grad
            assert isinstance(ours, nn.Parameter)
            assert torch.allclose(ours.reveal(), theirs, atol=2**-16)  # type: ignore[attr-defined]

    lead(world, program)


@pytest.mark.parametrize("parties", [2, 3])
def test_shared_again_among_the_same_and_among_others(parties: int) -> None:
    x = torch.randn(3, 4)
    with fedmpi.simulate(parties + 2) as workers:
        shared = share(x, *workers[:parties], bits=20)
        for among in (workers[:parties], workers[1 : parties + 1], workers[parties:]):
            again = share(shared, *among)
            torch.testing.assert_close(again.reveal(), x, atol=2.0**-19, rtol=0)
            torch.testing.assert_close((2 * again).reveal(), 2 * x, atol=2.0**-18, rtol=0)
        assert shared.refresh().secret.share.remote.key != shared.secret.share.remote.key
        torch.testing.assert_close(shared.refresh().reveal(), x, atol=2.0**-19, rtol=0)
        module = share(share(torch.nn.Linear(4, 2), *workers[:2]), *workers[-2:])
        assert module.weight.secret.group.ranks == [parties + 1, parties + 2]


def test_private_rows_shared_again_stay_private() -> None:
    with fedmpi.simulate(4) as (alice, bob, carol, dave):
        private = share(alice.send(torch.ones(2), private=True), alice, bob)
        again = share(private, carol, dave)
        with pytest.raises(RemoteError, match="private"):
            again.reveal()
