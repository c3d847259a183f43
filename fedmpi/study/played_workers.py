"""Workers that train nothing: what the owner of a replay hears.

Each has its clients, all of the same number of rows, and answers what a worker of a job in shards
answers. The sum of the updates is zero. Under secure aggregation it is the sum of the clients' own
masks, which the owner can open; those of pairs have cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fedmpi.comm.frame import decode, encode
from fedmpi.config import Config
from fedmpi.errors import UsageError
from fedmpi.federated.commands import Borrow, LearnStep, Ready, Report, Reported, SetUp, Train
from fedmpi.federated.masker import packed
from fedmpi.federated.masking import MASKED, Agree, MaskSum, Unmask, Unmasked
from fedmpi.federated.masks import add_masks
from fedmpi.federated.neighbours import Neighbourhood, neighbourhood
from fedmpi.federated.shamir import share
from fedmpi.federated.tally import Tally
from fedmpi.spdz.stream import new_key
from fedmpi.study.replay import Answered, Played
from fedmpi.workers.command import Command, Reply, decode_command
from fedmpi.workers.vectors import Broadcast, ReduceSum


@dataclass
class _Masks:
    """What the clients of a round have dealt: their own seeds, and the shares (holder, of)."""

    hood: Neighbourhood
    seeds: dict[int, bytes] = field(default_factory=dict)
    shares: dict[tuple[int, int], bytes] = field(default_factory=dict)


class PlayedWorkers(Played):
    """All workers of a replay.

    Args:
        config: of the job.
        clients: of every worker; they go round, as clients of equal length do when shards are made.
        rows: of every client.
    """

    def __init__(self, config: Config, clients: int, rows: int) -> None:
        self.config = config
        self.clients = clients
        self.rows = rows
        size = config.federated.batch_size
        batch = rows if size == "full" else min(size, rows)
        self._steps = config.federated.epochs * -(-rows // batch)
        self._masks: _Masks | None = None
        self._sum: torch.Tensor | None = None
        self._given: dict[int, int] = {}
        self._latest: tuple[bytes, Command] | None = None

    def obey(self, rank: int, header: bytes) -> Answered | None:
        # Many ranks get the very same bytes, which need not be read again.
        if self._latest is None or self._latest[0] != header:
            self._latest = header, decode_command(decode(header).message)
        command = self._latest[1]
        match command:
            case SetUp():
                total = self.config.data.clients
                ids = list(range(rank - 1, total, total // self.clients))
                even = [self.rows] * self.clients, [self._steps] * self.clients
                return _answer(rank, Ready(ids, *even, "cpu", reaches=True))
            case Report():
                return _answer(rank, Reported(Tally(), 0, 0))
            case Agree():
                self._agree(command)
            case ReduceSum():
                if rank == command.route.group[1]:
                    self._begin_sum(command)
            case Unmask():
                return self._unmask(rank)
            case LearnStep() | Broadcast() | Borrow() | Train() | MaskSum():
                pass
            case _:
                raise UsageError(
                    f"a replay plays no workers that obey {type(command).__name__}: use mode = "
                    "'shards' without defences, local privacy or ckks"
                )
        return None

    def give(self, rank: int, buffer: torch.Tensor) -> None:
        """All that there is comes from the owner's first child."""
        at = self._given.get(rank, 0)
        self._given[rank] = at + buffer.numel()
        if self._sum is None or rank != next(iter(self._given)):
            buffer.zero_()
        else:
            buffer.copy_(self._sum.view(torch.uint8)[at : at + buffer.numel()])

    def _agree(self, command: Agree) -> None:
        """Deals for all clients at once; every worker is told the same."""
        if self._masks and self._masks.hood.round == command.round:
            return
        rank = dict(zip(command.clients, command.ranks, strict=True))
        hood = neighbourhood(self.config, command.round, command.attempt, rank)
        masks = self._masks = _Masks(hood)
        for u in hood.rank:
            masks.seeds[u] = new_key()
            points = range(1, len(hood.neighbours[u]) + 1)
            shares = share(masks.seeds[u], points, hood.threshold)
            masks.shares |= {(v, u): s for v, s in zip(hood.neighbours[u], shares, strict=True)}

    def _begin_sum(self, command: ReduceSum) -> None:
        self._given = {}
        self._sum = None
        if command.key == MASKED:
            assert self._masks
            self._sum = torch.zeros(command.length, dtype=torch.int64)
            add_masks(self._sum, [(seed, 1) for seed in self._masks.seeds.values()])

    def _unmask(self, rank: int) -> Answered:
        assert self._masks
        hood, shares = self._masks.hood, self._masks.shares
        opened = packed(shares[pair] for pair in hood.opened(rank, ()))
        return _answer(rank, Unmasked(Reported(Tally(), 0, 0)), [opened])


def _answer(rank: int, reply: Reply, tensors: list[torch.Tensor] | None = None) -> Answered:
    return rank, *encode(reply, tensors or [])
