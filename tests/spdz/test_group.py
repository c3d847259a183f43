"""Who may be a party, and of which job."""

from __future__ import annotations

import pytest
import torch

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.spdz.group import group_of_workers
from fedmpi.spdz.member import Join
from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import lead

Workers = tuple[RemoteWorker, ...]


def test_one_party_and_the_same_worker_twice(world: World) -> None:
    def program(workers: Workers) -> None:
        x = torch.ones(2)
        for parties in ((workers[0],), (workers[0], workers[0]), (*workers, workers[-1])):
            with pytest.raises(UsageError, match="at least 2 different workers"):
                share(x, *parties)

    lead(world, program)


@pytest.mark.parametrize("ranks", [[0, 1], [1], [2, 3], []])
def test_a_worker_joins_only_parties_of_which_it_is_one_and_the_dealer_none(
    ranks: list[int],
) -> None:
    with fedmpi.simulate(2) as (alice, _):
        alice.link.tell(Join(7, ranks, bytes(16)))
        with pytest.raises(RemoteError, match="rank 1 cannot join parties"):
            alice.wait()


def test_pointers_of_another_job() -> None:
    with fedmpi.simulate(2) as workers, fedmpi.simulate(2) as others:
        pointer = others[0].send(torch.ones(2))
        with pytest.raises(UsageError, match="another job"):
            share(pointer, *workers)
        with pytest.raises(UsageError, match="two jobs"):
            share(torch.ones(2), workers[0], others[1])
        assert share(pointer, *others).reveal().tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="ended"):
        share(torch.ones(2), *workers)


def test_the_order_of_the_parties_makes_another_group(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        there, back = group_of_workers(workers), group_of_workers(workers[::-1])
        assert there is group_of_workers(workers) is not back
        assert there.number != back.number
        x, y = share(torch.ones(2), *workers), share(torch.ones(2), *workers[::-1])
        with pytest.raises(UsageError, match="different parties"):
            x + y
        assert torch.equal((x * x).reveal(), (y * y).reveal())  # type: ignore[attr-defined]

    lead(world, program)


def test_a_group_of_each_job_has_keys_of_its_own(world: World) -> None:
    """The number is the same, and the streams are not."""
    seen = []

    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        group = group_of_workers(workers)
        seen.append((group.number, [s.uniform(2**63, 4).tolist() for s in group.dealer.streams]))

    for _ in range(2):
        lead(world, program)
    if seen:
        (number, first), (again, second) = seen
        assert number == again
        words = [tuple(w) for w in first + second]
        assert len(set(words)) == len(words)
