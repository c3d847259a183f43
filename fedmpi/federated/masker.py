"""What a worker knows in a round of secure aggregation, and what it tells of that to whom.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning",
Figure 4, with the graph of `neighbours`. Every client u has two secrets, new in every round: k_u,
from which the seeds s_uv of its masks with its neighbours follow, and b_u, the seed of a mask of
its own. In place of a key agreement u hands s_uv to its neighbour v > u, from worker to worker.

A worker plays all of its clients: masks between two of them would cancel within its sum and are
left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import torch

from fedmpi.comm.endpoint import Frame
from fedmpi.comm.frame import UNREADABLE, ProtocolError
from fedmpi.decoding import from_msgpack
from fedmpi.federated.masks import Mask, pair_seed
from fedmpi.federated.neighbours import Neighbourhood
from fedmpi.federated.shamir import SECRET_BYTES, SHARE_BYTES, share
from fedmpi.spdz.stream import new_key


class Dealt(msgspec.Struct, frozen=True, tag=True):
    """From worker to worker: the shares and seeds in this frame are of these clients."""

    round: int
    attempt: int
    clients: list[int]


class Masker:
    """A worker in a round.

    Args:
        rank: of the worker.
        hood: of the round.

    Attributes:
        summed: the worker's clients that are in its sum, ascending; None while it is not known.
        lost: the clients without which the sum was opened; None before.
    """

    def __init__(self, rank: int, hood: Neighbourhood) -> None:
        self.rank = rank
        self.hood = hood
        self.summed: list[int] | None = None
        self.lost: frozenset[int] | None = None
        self._self_seeds: dict[int, bytes] = {}
        self._pair_seeds: dict[tuple[int, int], bytes] = {}
        self._shares: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # (holder, of): b, k

    def deal(self) -> list[tuple[int, Dealt, torch.Tensor]]:
        """Draws the secrets of all clients.

        Returns:
            What goes to each other worker: its rank, the header, and uint8 with the rest, in the
            order of `Neighbourhood.dealt`.
        """
        hood = self.hood
        outgoing: dict[int, list[bytes]] = {other: [] for other in hood.partners(self.rank)}
        for u in hood.clients(self.rank):
            key, self._self_seeds[u] = new_key(), new_key()
            points = range(1, len(hood.neighbours[u]) + 1)
            both = [share(s, points, hood.threshold) for s in (self._self_seeds[u], key)]
            for v, b, k in zip(hood.neighbours[u], *both, strict=True):
                if hood.rank[v] == self.rank:
                    self._shares[v, u] = b, k
                    continue
                outgoing[hood.rank[v]] += [b, k]
                if u < v:
                    seed = pair_seed(key, hood.round, hood.attempt, v)
                    self._pair_seeds[u, v] = seed
                    outgoing[hood.rank[v]].append(seed)
        header = Dealt(hood.round, hood.attempt, hood.clients(self.rank))
        return [(other, header, packed(pieces)) for other, pieces in outgoing.items()]

    def take(self, frame: Frame) -> None:
        """What another worker has dealt.

        Raises:
            ProtocolError: it is not what this round asks of that worker.
        """
        hood, source = self.hood, frame.source
        here = f"to rank {self.rank} in round {hood.round}, attempt {hood.attempt}"
        try:
            header = from_msgpack(frame.message, Dealt)
        except UNREADABLE as error:
            raise ProtocolError(f"rank {source} dealt no shares {here}: {error}") from None
        if (header.round, header.attempt) != (hood.round, hood.attempt):
            raise ProtocolError(
                f"rank {source} dealt shares for round {header.round}, attempt {header.attempt} "
                f"{here}"
            )
        if header.clients != hood.clients(source):
            raise ProtocolError(
                f"rank {source} dealt shares of clients {header.clients} {here}: expected "
                f"{hood.clients(source)}"
            )
        data = unpacked(frame.tensors, hood.dealt_bytes(source, self.rank), f"{source} {here}")
        at = 0
        for u, v in hood.dealt(source, self.rank):
            middle, end = at + SHARE_BYTES, at + 2 * SHARE_BYTES
            self._shares[v, u] = data[at:middle], data[middle:end]
            at = end
            if u < v:
                at = end + SECRET_BYTES
                self._pair_seeds[u, v] = data[end:at]

    def masks(self) -> list[Mask]:
        """Those of the sum: of each client in it b_u, and s_uv: added if u < v, else subtracted."""
        assert self.summed is not None
        own = [(self._self_seeds[u], 1) for u in self.summed]
        pairs = [
            (self._pair_seeds[min(u, v), max(u, v)], 1 if u < v else -1)
            for u in self.summed
            for v in self.hood.neighbours[u]
            if self.hood.rank[v] != self.rank
        ]
        return own + pairs

    def open(self, lost: frozenset[int]) -> torch.Tensor:
        """Shares of b_u for each remaining client u and of k_u for each lost one, and seeds.

        Returns:
            uint8 in the order of `Neighbourhood.opened`, then `Neighbourhood.handed`.

        Raises:
            ProtocolError: what is asked could give away more than the sum.
        """
        self._refuse(lost)
        self.lost, hood = lost, self.hood
        shares = [self._shares[v, u][u in lost] for v, u in hood.opened(self.rank, lost)]
        seeds = [self._pair_seeds[pair] for pair in hood.handed(self.rank, lost)]
        return packed([*shares, *seeds])

    def _refuse(self, lost: frozenset[int]) -> None:
        hood, own = self.hood, self.hood.clients(self.rank)
        gone = [u for u in own if u not in (self.summed or ())]
        if self.summed is None:
            why = "it has masked no sum"
        elif self.lost is not None and self.lost != lost:
            why = (
                f"it did so with {sorted(self.lost)} lost, and both secrets of a client would give "
                "its update away"
            )
        elif [u for u in own if u in lost] != gone:
            why = f"of its clients {own} those lost are {gone}"
        elif len(hood.rank.keys() - lost) < 2:
            why = "the sum would be one client's update"
        elif short := hood.short([u for u in own if u not in lost], lost):
            why = f"client {short[0]} has fewer than {hood.threshold} neighbours left"
        else:
            return
        raise ProtocolError(
            f"rank {self.rank} does not open round {hood.round}, attempt {hood.attempt} with "
            f"clients {sorted(lost)} lost: {why}"
        )


def packed(pieces: Iterable[bytes]) -> torch.Tensor:
    """Bytes as uint8."""
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8))


def unpacked(tensors: Sequence[torch.Tensor], expected: int, where: str) -> bytes:
    """The bytes of a frame's one tensor.

    Raises:
        ProtocolError: there is another number of them; begins with "rank" and `where`.
    """
    found = sum(t.nbytes for t in tensors)
    if len(tensors) != 1 or tensors[0].dtype != torch.uint8 or found != expected:
        raise ProtocolError(f"rank {where}: {found} bytes of shares, expected {expected}")
    return tensors[0].numpy().tobytes()
