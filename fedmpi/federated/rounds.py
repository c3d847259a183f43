"""The two kinds of round: updates that are averaged, and a model that moves along.

Both send all their commands ahead and wait once. They change the owner's model in place
and say what happened; nothing here evaluates, writes or prints.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

import torch

from fedmpi.comm.collective import broadcast, reduce_sum
from fedmpi.config import Config
from fedmpi.errors import FedMPIError
from fedmpi.federated.commands import MODEL, SUM, Hop, Report, Reported, Train
from fedmpi.federated.device import wire_memory
from fedmpi.federated.fixed_point import apply_sum
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.metrics import Excluded
from fedmpi.federated.trainer import LOSS_UNIT, Tally
from fedmpi.workers.crew import Crew
from fedmpi.workers.vectors import Broadcast, ReduceSum, Route
from fedmpi.workers.worker import OWNER


@dataclass(frozen=True)
class Home:
    """Where the clients live.

    Attributes:
        rank: of the worker that holds a client.
        rows: of a client.
    """

    rank: dict[int, int]
    rows: dict[int, int]


@dataclass(frozen=True)
class Outcome:
    """What a round did.

    Attributes:
        clients, examples: in the new model.
        train_loss: mean over their rows.
        phases: seconds of broadcast, train, aggregate and wait.
        train_max: seconds of the worker that trained longest.
        idle_seconds, idle_cpu: wall and CPU seconds of the owner while workers trained.
        excluded: clients left out.
    """

    clients: int
    examples: int
    train_loss: float
    phases: dict[str, float]
    train_max: float
    idle_seconds: float
    idle_cpu: float
    excluded: list[Excluded]


class Rounds(ABC):
    """What both kinds share: the owner's model, its way to the workers, their reports.

    Args:
        config: of the job.
        crew: the workers.
        home: where the clients live.
        state: the owner's model; every round changes its vectors in place.
    """

    def __init__(self, config: Config, crew: Crew, home: Home, state: FlatState) -> None:
        self.config = config
        self.crew = crew
        self.home = home
        self.state = state
        transport = crew.endpoint.transport
        self.wire = wire_memory(state.vectors, transport.takes_gpu_memory)
        self.chunk_bytes = config.comm.chunk_kib * 1024
        self._wait = 0.0  # of the round before, in seconds: the next one will be like it
        self._worker_traffic: dict[int, tuple[int, int]] = {}

    @abstractmethod
    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        """Sends the commands of a round and the model; returns the ranks that will report."""

    @abstractmethod
    def _receive(self) -> None:
        """Waits for what comes back: the sum of the updates, or the model."""

    @abstractmethod
    def _update(self, included: float) -> None:
        """Changes the owner's model; `included` is the share of the rows that is in the update."""

    @staticmethod
    @abstractmethod
    def _seconds(tallies: Sequence[Tally]) -> tuple[float, float, float]:
        """Seconds of training and of adding up per worker, and for which workers were busy."""

    def play(self, number: int, cohort: Sequence[int], lr: float) -> Outcome:
        """One round over a cohort of clients.

        Raises:
            RemoteError: a worker failed.
            FedMPIError: an update cannot be used and the job is to stop at that, or none can.
        """
        clock = time.perf_counter
        begun = clock()
        ranks = self._send(number, cohort, lr)
        sent, cpu = clock(), time.thread_time()
        self._receive()
        reports = self._hear(ranks)
        heard, cpu = clock(), time.thread_time() - cpu
        self._wait = heard - sent
        included, excluded = self._included(number, cohort, ranks, reports)
        self._update(included / sum(self.home.rows[c] for c in cohort))
        tallies = [report.tally for report in reports]
        # A worker may begin before the owner has sent all: what overlaps counts as sending.
        seconds = self._seconds(tallies)
        overlap = min(1.0, (heard - sent) / max(seconds[2], 1e-9))
        train, add, busy = (s * overlap for s in seconds)
        return Outcome(
            clients=len(cohort) - len(excluded),
            examples=included,
            train_loss=float(sum(t.loss for t in tallies)) / LOSS_UNIT / included,
            phases={
                "broadcast": sent - begun,
                "train": train,
                "aggregate": add + max(heard - sent - busy, 0.0) + (clock() - heard),
                "wait": busy - train - add,
            },
            train_max=max(t.train_seconds for t in tallies),
            idle_seconds=heard - sent,
            idle_cpu=cpu,
            excluded=excluded,
        )

    def broadcast(self, ranks: Sequence[int]) -> Route:
        """Sends the owner's model to these workers; returns the route that it took."""
        route = Route([OWNER, *ranks], self.config.comm.topology, self.chunk_bytes)
        for rank in ranks:
            command = Broadcast(MODEL, route, self.state.dtypes(), self.state.lengths())
            self.crew.tell(rank, command)
        self._stage()
        transport = self.crew.endpoint.transport
        broadcast(transport, route.group, self.wire, route.topology, route.chunk_bytes)
        return route

    def traffic(self) -> tuple[int, int]:
        """Bytes and messages sent by all ranks, up to their latest reports."""
        transport = self.crew.endpoint.transport
        own = (transport.bytes_sent, transport.messages_sent)
        sent, messages = zip(own, *self._worker_traffic.values(), strict=True)
        return sum(sent), sum(messages)

    def _stage(self) -> None:
        """Brings the model to where MPI can read it; nothing to do on a CPU."""
        for sent, vector in zip(self.wire, self.state.vectors, strict=True):
            if sent is not vector:
                sent.copy_(vector)

    def _hear(self, ranks: Sequence[int]) -> list[Reported]:
        reports = self.crew.hear(ranks, Reported)
        for rank, report in zip(ranks, reports, strict=True):
            self._worker_traffic[rank] = (report.bytes_sent, report.messages_sent)
        return reports

    def _included(
        self,
        number: int,
        cohort: Sequence[int],
        ranks: Sequence[int],
        reports: Sequence[Reported],
    ) -> tuple[int, list[Excluded]]:
        """Rows in the new model, and the clients left out.

        Raises:
            FedMPIError: a client was left out and the job is to stop at that, or all were.
        """
        excluded = [
            Excluded(one.client, rank, one.reason)
            for rank, report in zip(ranks, reports, strict=True)
            for one in report.tally.left_out
        ]
        excluded.sort(key=lambda e: e.client)
        left_out = {e.client for e in excluded}
        included = sum(self.home.rows[c] for c in cohort if c not in left_out)
        if excluded and (not included or self.config.federated.on_bad_update == "stop"):
            raise FedMPIError(_spoiled(self.config, number, excluded, included))
        return included, excluded


class Averaging(Rounds):
    """FedAvg: all clients start from the same model, and their updates are averaged."""

    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        examples = sum(self.home.rows[c] for c in cohort)
        clients_of: dict[int, list[int]] = {}
        for client in sorted(cohort):
            clients_of.setdefault(self.home.rank[client], []).append(client)
        ranks = sorted(clients_of)
        self._route = self.broadcast(ranks)
        for rank in ranks:
            clients = clients_of[rank]
            weights = [self.home.rows[c] / examples for c in clients]
            self.crew.tell(rank, Train(number, clients, weights, lr))
            self.crew.tell(rank, ReduceSum(SUM, self._route, self.state.numel))
            self.crew.tell(rank, Report())
        return ranks

    def _receive(self) -> None:
        self._total = self.wire[0].new_zeros(self.state.numel, dtype=torch.int64)
        route, transport = self._route, self.crew.endpoint.transport
        reduce_sum(
            transport,
            route.group,
            self._total,
            route.topology,
            route.chunk_bytes,
            expected=self._wait,
        )

    def _update(self, included: float) -> None:
        total = self._total.to(self.state.vectors[0].device)
        apply_sum(self.state.vectors, total, included)

    @staticmethod
    def _seconds(tallies: Sequence[Tally]) -> tuple[float, float, float]:
        # Workers train at the same time: on average so long, the slowest so long.
        train = fmean(t.train_seconds for t in tallies)
        add = fmean(t.sum_seconds for t in tallies)
        return train, add, max(t.train_seconds + t.sum_seconds for t in tallies)


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

    def _update(self, included: float) -> None:
        self.state.load(self.wire)

    def _pass(self, source: int, destination: int) -> None:
        transport = self.crew.endpoint.transport
        broadcast(transport, [source, destination], self.wire, "star", self.chunk_bytes)

    @staticmethod
    def _seconds(tallies: Sequence[Tally]) -> tuple[float, float, float]:
        # Workers train one after another.
        train, add = sum(t.train_seconds for t in tallies), sum(t.sum_seconds for t in tallies)
        return train, add, train + add


def _spoiled(config: Config, number: int, excluded: list[Excluded], included: int) -> str:
    first = excluded[0]
    more = f" (and {len(excluded) - 1} more)" if len(excluded) > 1 else ""
    what = "on_bad_update = 'stop'" if included else "no client's update is left"
    return (
        f"round {number}: client {first.client} on rank {first.rank}{more}: {first.reason}; "
        f"{what}: lower the learning rate ({config.federated.lr:g}) or look at that client's data"
    )
