"""What the two kinds of round share: `averaging` and `cyclic`.

Both send all their commands ahead and wait once. They change the owner's model in place
and say what happened; nothing here evaluates, writes or prints.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fedmpi.comm.collective import broadcast
from fedmpi.config import Config
from fedmpi.errors import FedMPIError, SpoiledError
from fedmpi.federated.commands import MODEL, Reported
from fedmpi.federated.device import wire_memory
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.metrics import ClientScore, Excluded
from fedmpi.federated.remembered import Remembers
from fedmpi.federated.root_set import RootSet
from fedmpi.federated.tally import LOSS_UNIT, Tally
from fedmpi.workers.crew import Crew
from fedmpi.workers.vectors import Broadcast, Route, route_over
from fedmpi.workers.worker import OWNER


@dataclass(frozen=True)
class Home:
    """Where the clients live.

    Attributes:
        rank: of the worker that holds a client.
        rows: of a client.
        steps: of SGD that it takes in a round.
        shard: number of the one that it is in, from 1: at first the rank that holds it.
        remember: clients carry something from round to round that stays with their workers.
        lends: any worker may train any client.
    """

    rank: dict[int, int]
    rows: dict[int, int]
    steps: dict[int, int]
    shard: dict[int, int] = field(default_factory=dict)
    remember: bool = False
    lends: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a round did.

    Attributes:
        clients, examples: in the new model.
        train_loss: mean over their rows; None if there are none, or nobody is to know it.
        phases: seconds of broadcast, train, aggregate, wait, and of evaluate what `meanwhile`
            took longer than the workers.
        train_max: seconds of the worker that trained longest.
        idle_seconds, idle_cpu: wall and CPU seconds of the owner while it waited for workers.
        excluded: clients left out.
        findings: further fields of `RoundMetrics`, by name.
    """

    clients: int
    examples: int
    train_loss: float | None
    phases: dict[str, float]
    train_max: float
    idle_seconds: float
    idle_cpu: float
    excluded: list[Excluded]
    findings: dict[str, Any]


class Rounds(ABC):
    """What both kinds share: the owner's model, its way to the workers, their reports.

    Args:
        config: of the job.
        crew: the workers.
        home: where the clients live.
        state: the owner's model; every round changes its vectors in place.

    Attributes:
        findings: what a round has to say beside its outcome: fields of `RoundMetrics`.
        root: the owner's root set, which the job gives if one is needed.
        scores: of the last round's clients, if they are scored.
    """

    def __init__(self, config: Config, crew: Crew, home: Home, state: FlatState) -> None:
        self.config = config
        self.crew = crew
        self.home = home
        self.state = state
        transport = crew.endpoint.transport
        self.wire = wire_memory(state.vectors, transport.takes_gpu_memory)
        self.chunk_bytes = config.comm.chunk_kib * 1024
        self.findings: dict[str, Any] = {}
        self.root: RootSet | None = None
        self.scores: list[ClientScore] = []
        self._wait = 0.0  # of the round before, in seconds: the next one will be like it
        self._worker_traffic: dict[int, tuple[int, int]] = {}

    @abstractmethod
    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        """Sends the commands of a round and the model; returns the ranks that will report."""

    @abstractmethod
    def _receive(self) -> None:
        """Waits for what comes back: the sum of the updates, or the model."""

    @abstractmethod
    def _update(self, cohort: Sequence[int], reports: Sequence[Reported]) -> None:
        """Changes the owner's model; `cohort` are the clients that are not left out, ascending."""

    @abstractmethod
    def _seconds(self, tallies: Sequence[Tally], rows: int) -> tuple[float, float, float]:
        """Seconds of training and of adding up per worker, and for which workers were busy.

        Args:
            tallies: of the workers.
            rows: of all clients that are not left out, at least 1.
        """

    def play(
        self,
        number: int,
        cohort: Sequence[int],
        lr: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> Outcome:
        """One round over a cohort of clients.

        Args:
            number: from 1.
            cohort: client ids.
            lr: local learning rate.
            meanwhile: what the owner does while workers train. Its model is still that of the
                round before: nothing changes it until all updates are here.

        Raises:
            RemoteError: a worker failed.
            SpoiledError: an update cannot be used and the job is to stop at that, or none can.
            FedMPIError: all clients dropped out.
        """
        clock = time.perf_counter
        begun = clock()
        self.findings = {}
        if not cohort:
            away = self._do(meanwhile)
            self._without_clients(number)
            phases = dict.fromkeys(("broadcast", "train", "wait"), 0.0)
            phases |= {"aggregate": clock() - begun - away, "evaluate": away}
            return Outcome(0, 0, None, phases, 0.0, 0.0, 0.0, [], self.findings)
        ranks = self._send(number, cohort, lr)
        sent = clock()
        away = self._do(meanwhile)
        self._wait = max(self._wait - away, 0.0)
        cpu = time.thread_time()
        self._receive()
        reports = self._hear(ranks)
        heard, cpu = clock(), time.thread_time() - cpu
        self._wait = heard - sent
        self.crew.vigil.observe(self._wait)
        included, excluded = self._included(number, cohort, ranks, reports)
        left_out = {e.client for e in excluded} | set(self.findings.get("dropped", ()))
        self._update(sorted(c for c in cohort if c not in left_out), reports)
        tallies = [report.tally for report in reports]
        # A worker may begin before the owner has sent all: what overlaps counts as training.
        train, add, busy = self._seconds(tallies, included)
        sending = max(min(sent - begun, heard - begun - busy), 0.0)
        late = max(heard - begun - sending - busy, 0.0)
        waited_for = min(away, late)  # while nobody trained any more
        loss = float(sum(t.loss for t in tallies)) / LOSS_UNIT / included
        return Outcome(
            clients=len(cohort) - len(left_out),
            examples=included,
            train_loss=None if self.config.federated.privacy.kind == "local" else loss,
            phases={
                "broadcast": sending,
                "train": train,
                "aggregate": add + late - waited_for + (clock() - heard),
                "wait": busy - train - add,
                "evaluate": waited_for,
            },
            train_max=max(t.train_seconds for t in tallies),
            idle_seconds=heard - sent - away,
            idle_cpu=cpu,
            excluded=excluded,
            findings=self.findings,
        )

    def _do(self, meanwhile: Callable[[], None] | None) -> float:
        """Seconds that it takes, after all commands have been handed to MPI."""
        begun = time.perf_counter()
        if meanwhile is not None:
            meanwhile()
        return time.perf_counter() - begun

    def exhausted(self) -> str:
        """Why there can be no further round; empty if there can be one."""
        return ""

    def remarks(self) -> list[str]:
        """What a person should know before the first round, a line each."""
        return []

    def carried(self) -> dict[str, Remembers]:
        """What the owner carries from round to round, by name: all of it is in a checkpoint."""
        return {"model": self.state}

    def _without_clients(self, number: int) -> None:  # noqa: B027 - most have nothing to do
        """A round for which no client was drawn leaves the model as it is."""

    @contextmanager
    def broadcast(
        self, ranks: Sequence[int], beside: Sequence[torch.Tensor] = ()
    ) -> Iterator[Route]:
        """Sends the owner's model, and vectors beside it, behind the commands told in the block.

        A worker that has taken its model need not wait for what to do with it.

        Yields:
            The route that they take.
        """
        transport = self.crew.endpoint.transport
        route = route_over([OWNER, *ranks], self.config.comm, transport.nodes)
        vectors = [*self.wire, *(vector.to(self.wire[0].device) for vector in beside)]
        dtypes = [str(v.dtype).removeprefix("torch.") for v in vectors]
        command = Broadcast(MODEL, route, dtypes, [v.numel() for v in vectors])
        self.crew.tell_all(ranks, command)
        yield route
        self._stage()
        broadcast(transport, route.group, vectors, route.topology, route.chunk_bytes)

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
        """Rows in the new model, and the clients left out; those that dropped out are a finding.

        Raises:
            SpoiledError: a client was left out and the job is to stop at that, or nobody is left.
            FedMPIError: all clients dropped out.
        """
        excluded = [
            Excluded(one.client, rank, one.reason)
            for rank, report in zip(ranks, reports, strict=True)
            for one in report.tally.left_out
        ]
        excluded.sort(key=lambda e: e.client)
        dropped = sorted(client for report in reports for client in report.tally.dropped)
        if dropped:
            self.findings["dropped"] = dropped
        left_out = {e.client for e in excluded} | set(dropped)
        included = sum(self.home.rows[c] for c in cohort if c not in left_out)
        if excluded and (not included or self.config.federated.on_bad_update == "stop"):
            raise SpoiledError(_spoiled(self.config, number, excluded, included))
        if not included:
            raise FedMPIError(
                f"round {number}: all {len(cohort)} clients dropped out: lower dropout "
                f"({self.config.federated.dropout:g}) or raise fraction"
            )
        return included, excluded


def _spoiled(config: Config, number: int, excluded: list[Excluded], included: int) -> str:
    first = excluded[0]
    more = f" (and {len(excluded) - 1} more)" if len(excluded) > 1 else ""
    what = "on_bad_update = 'stop'" if included else "no client's update is left"
    return (
        f"round {number}: client {first.client} on rank {first.rank}{more}: {first.reason}; "
        f"{what}: lower the learning rate ({config.federated.lr:g}) or look at that client's data"
    )
