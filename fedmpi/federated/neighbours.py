"""Who masks with whom in a round, and who can open what.

Bonawitz et al. 2017 let all clients mask with each other; Bell et al. 2020, "Secure
single-server aggregation with (poly)logarithmic overhead", section 3, show that a random
k-regular graph with k of the order of log n does as well. Here as there the graph is a ring in
random order, on which each client has the k / 2 nearest on either side as neighbours (a Harary
graph). Everybody computes the same graph from public values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedmpi.config import Config
from fedmpi.federated.seeds import generator
from fedmpi.federated.shamir import SECRET_BYTES, SHARE_BYTES


@dataclass(frozen=True)
class Neighbourhood:
    """The graph over the clients of a cohort.

    Attributes:
        round: its number, from 1.
        attempt: 0; of a round that is repeated without the lost clients, 1.
        rank: of the worker that plays each client.
        neighbours: of each client, ascending; who is a neighbour of whom is mutual.
        threshold: neighbours that it takes to open a secret of a client.
    """

    round: int
    attempt: int
    rank: Mapping[int, int]
    neighbours: Mapping[int, Sequence[int]]
    threshold: int

    @cached_property
    def _clients(self) -> dict[int, list[int]]:
        clients: dict[int, list[int]] = {}
        for client in sorted(self.rank):
            clients.setdefault(self.rank[client], []).append(client)
        return clients

    def clients(self, rank: int) -> list[int]:
        """The clients that a worker plays, ascending."""
        return self._clients.get(rank, [])

    def partners(self, rank: int) -> list[int]:
        """The other workers that play neighbours of a worker's clients, ascending."""
        ranks = {self.rank[v] for u in self.clients(rank) for v in self.neighbours[u]}
        return sorted(ranks - {rank})

    def dealt(self, giver: int, taker: int) -> list[tuple[int, int]]:
        """(u, v): the giver's client u deals shares to the taker's client v."""
        return [
            (u, v) for u in self.clients(giver) for v in self.neighbours[u] if self.rank[v] == taker
        ]

    def dealt_bytes(self, giver: int, taker: int) -> int:
        """Bytes of what a worker deals to another: two shares, and a seed if u < v."""
        pairs = self.dealt(giver, taker)
        return 2 * SHARE_BYTES * len(pairs) + SECRET_BYTES * sum(u < v for u, v in pairs)

    def opened(self, rank: int, lost: Collection[int]) -> list[tuple[int, int]]:
        """(v, u): the worker's remaining client v opens its share of a secret of u."""
        return [(v, u) for v in self.clients(rank) if v not in lost for u in self.neighbours[v]]

    def handed(self, rank: int, lost: Collection[int]) -> list[tuple[int, int]]:
        """(v, u): the worker's remaining client v hands over the seed that it gave the lost u."""
        return [
            (v, u)
            for v, u in self.opened(rank, lost)
            if v < u and u in lost and self.rank[u] != rank
        ]

    def opened_bytes(self, rank: int, lost: Collection[int]) -> int:
        """Bytes of what a worker opens and hands over."""
        seeds = SECRET_BYTES * len(self.handed(rank, lost))
        return SHARE_BYTES * len(self.opened(rank, lost)) + seeds

    def short(self, clients: Collection[int], lost: Collection[int]) -> list[int]:
        """Those of the clients whose secrets the remaining neighbours are too few to open."""
        return [
            u for u in clients if sum(v not in lost for v in self.neighbours[u]) < self.threshold
        ]


def neighbourhood(
    config: Config, number: int, attempt: int, rank: Mapping[int, int]
) -> Neighbourhood:
    """The graph of a round.

    Args:
        config: of the job; its seed orders the ring.
        number: of the round.
        attempt: see `Neighbourhood`.
        rank: of each client of the cohort, at least 2.
    """
    secure, clients = config.federated.secure, sorted(rank)
    n = len(clients)
    k = degree(n, secure.neighbours)
    if k == n - 1:
        neighbours = {u: [v for v in clients if v != u] for u in clients}
    else:
        order = generator(config.seed, "neighbours", number).permutation(n).tolist()
        ring = [clients[place] for place in order]
        steps = [step for step in range(-k // 2, k // 2 + 1) if step]
        neighbours = {u: sorted(ring[(i + s) % n] for s in steps) for i, u in enumerate(ring)}
    # Rounding must not ask for one more (0.55 of 20 is 11.000000000000002), nor for half: two
    # stories that an owner tells would then both find enough shares.
    threshold = max(math.ceil(secure.threshold * k - 1e-9), k // 2 + 1)
    return Neighbourhood(number, attempt, rank, neighbours, threshold)


def degree(cohort: int, wanted: int) -> int:
    """Neighbours of each client of a cohort: as many as wanted, 0 for a number that suffices.

    To part the ring, k / 2 clients in a row have to be lost or corrupt at two places. Where all
    are lost, the next has fewer neighbours left than any threshold. If a share d of the clients
    is lost or corrupt, the ring is parted with a probability below (n d^(k/2))^2 / 2: with
    k = 2 ceil(log2 n) + 2 and d = 1/5 below n^-2.6 / 50, which is 2^-24 for n = 100 clients and
    2^-32 for 1,000. Up to 11 clients this is the complete graph.
    """
    return min(wanted or 2 * math.ceil(math.log2(cohort)) + 2, cohort - 1)
