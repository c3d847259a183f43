"""Rounds of a model that moves along, from client to client."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fedmpi.comm.collective import broadcast
from fedmpi.federated.commands import Hop, Report, Reported
from fedmpi.federated.rounds import Rounds
from fedmpi.federated.tally import Tally
from fedmpi.workers.worker import OWNER


class Cyclic(Rounds):
    """The model moves: each client trains on from where the one before it stopped.

    Level 1 of the five, known as cyclic weight transfer (Chang et al. 2018, "Distributed
    deep learning networks among institutions for medical imaging"). Neighbours in the
    order that live on one worker are one hop.
    """

    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        hops = [(r, list(group)) for r, group in groupby(cohort, key=self.home.rank.__getitem__)]
        stops = [OWNER, *(rank for rank, _ in hops), OWNER]
        for (rank, clients), source, destination in zip(hops, stops, stops[2:], strict=False):
            self.crew.tell(rank, Hop(number, clients, lr, source, destination, self.chunk_bytes))
        ranks = sorted({rank for rank, _ in hops})
        for rank in ranks:
            self.crew.tell(rank, Report())
        self._stage()
        self._last = stops[-2]
        self._pass(OWNER, stops[1])
        return ranks

    def _receive(self) -> None:
        self._pass(self._last, OWNER)

    def _update(self, cohort: Sequence[int], reports: Sequence[Reported]) -> None:
        self.state.load(self.wire)

    def _pass(self, source: int, destination: int) -> None:
        transport = self.crew.endpoint.transport
        broadcast(transport, [source, destination], self.wire, "star", self.chunk_bytes)

    def _seconds(self, tallies: Sequence[Tally], rows: int) -> tuple[float, float, float]:
        # Workers train one after another.
        train, add = sum(t.train_seconds for t in tallies), sum(t.sum_seconds for t in tallies)
        return train, add, train + add
