"""Rounds in which the owner looks at every client's update: for defence, not for secrecy.

Workers keep the updates of a round. The owner fetches them in blocks of columns, all clients
side by side, so that its memory does not grow with clients times model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace

import torch

from fedmpi.config import COLLUDING, Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import LostRank, UsageError
from fedmpi.federated.aggregation import ask_sum, receive_sum
from fedmpi.federated.averaging import Averaging
from fedmpi.federated.collusion import Collusion
from fedmpi.federated.commands import Report, Reported
from fedmpi.federated.detection import Detector, detector_of
from fedmpi.federated.fixed_point import real
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.kept import Block, GiveBlock, PutBlock, SumKept, TrainAndKeep
from fedmpi.federated.remembered import Remembers
from fedmpi.federated.robust.fltrust import FLTrust
from fedmpi.federated.robust.rules import rule_of
from fedmpi.federated.rounds import Home, Outcome
from fedmpi.federated.rule import Rule
from fedmpi.federated.strategy import Cohort, Mean, Strategy
from fedmpi.workers.crew import Crew

BLOCK_VALUES = 2**21
"""Values of a block over all clients: 8 MiB of float32."""


def _reason(config: Config) -> str:
    """The option for which the owner looks at updates."""
    federated = config.federated
    if federated.robust.kind != "none":
        return f"robust.kind = {federated.robust.kind!r}"
    return "detect.score" if federated.detect.score else f"attack.kind = {config.attack.kind!r}"


class Examined(Averaging):
    """As `Averaging`, with a rule in place of the weighted mean.

    Raises:
        UsageError: the rule does not go with the size of the cohort or with the strategy.
    """

    def __init__(
        self, config: Config, crew: Crew, home: Home, state: FlatState, strategy: Strategy
    ) -> None:
        super().__init__(config, crew, home, state, strategy)
        federated = config.federated
        federated.robust.require_clients(cohort_size(len(home.rows), federated.fraction))
        if self.strategy.parts():
            raise UsageError(
                f"strategy.kind = {federated.strategy.kind!r} with {_reason(config)}: what its "
                "clients send beside their updates would not be looked at; leave one of them out"
            )
        self.rule = rule_of(config)
        self.detector = detector_of(config, home.rank)
        collude = config.attack.kind in COLLUDING
        self.collusion = Collusion(config, sorted(home.rows)) if collude else None

    def carried(self) -> dict[str, Remembers]:
        looks = {"detector": self.detector} if self.detector else {}
        return super().carried() | {"rule": self.rule} | looks

    def play(
        self,
        number: int,
        cohort: Sequence[int],
        lr: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> Outcome:
        survives = self.crew.endpoint.transport.survives
        shared = {id(self.home.rank): self.home.rank}  # which is not the detector's own
        before = deepcopy(self.detector, shared) if survives else None
        try:
            outcome = super().play(number, cohort, lr, meanwhile)
        except LostRank:
            # The round may be begun anew, with what was known before it.
            self.detector = before
            raise
        out = [s.client for s in self.findings.get("suspects", []) if s.excluded]
        return replace(
            outcome,
            clients=outcome.clients - len(out),
            examples=outcome.examples - sum(self.home.rows[c] for c in out),
        )

    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        self._number = number
        clients = sorted(cohort)
        weights = self.strategy.weights(self._cohort(clients))
        self._weight_of = dict(zip(clients, weights, strict=True))
        of_rank = self._placed(clients)
        with self.broadcast(sorted(of_rank), self.strategy.sends()) as self._route:
            for rank, ids in of_rank.items():
                asked = [self._weight_of[c] for c in ids]
                self._lend(rank, ids)
                self.crew.tell(rank, TrainAndKeep(number, ids, asked, lr))
                self.crew.tell(rank, Report())
        if isinstance(self.rule, FLTrust):
            self.rule.own = self._own_update(number, lr)
        return list(of_rank)

    def _receive(self) -> None:
        """What comes back comes with the reports."""

    def _update(self, cohort: Sequence[int], reports: Sequence[Reported]) -> None:
        clients = list(cohort)
        if self.collusion:
            self._collude(self.collusion, clients)
        if self.detector:
            clients = self._unsuspected(self.detector, clients)
        total = sum(self._weight_of[c] for c in clients)
        weights = [self._weight_of[c] / total for c in clients]
        among = self._cohort(clients)
        self.rule.begin(among, weights)
        if self.rule.looks:
            self._show(self.rule, clients)
        update = self._combined(clients) if self.rule.by_coordinate else self._summed(among)
        self._settle()
        update = self.rule.finish(update)
        self.findings |= self.rule.findings()
        self.strategy.apply(Mean(update.to(self.state.vectors[0].device), among))

    def _collude(self, collusion: Collusion, clients: Sequence[int]) -> None:
        """Puts what colluding attackers send in the place of what they have trained."""
        honest, colluders = collusion.split(self._number, clients)
        if not colluders:
            return
        of_rank = self._by_rank(colluders)
        for columns, block in self._blocks(honest):
            forged = collusion.craft(block, len(colluders))
            for rank, ids in of_rank.items():
                rows = forged.repeat(len(ids), 1)
                self.crew.tell(rank, PutBlock(ids, columns.start), [rows])

    def _combined(self, clients: Sequence[int]) -> torch.Tensor:
        mean = torch.empty(self.state.numel, dtype=torch.float64)
        for columns, block in self._blocks(clients):
            mean[columns] = self.rule.combine(columns, block)
        return mean

    def _summed(self, cohort: Cohort) -> torch.Tensor:
        weights = self.rule.weights()
        # The exact sum has room for twice what weights that add up to 1 can give.
        together = sum(weights)
        beyond = together if together > 2.0 else 1.0
        weight_of = dict(zip(cohort.clients, (w / beyond for w in weights), strict=True))
        of_rank = self._by_rank(cohort.clients)
        for rank in self._route.group[1:]:
            ids = [c for c in of_rank.get(rank, []) if weight_of[c]]
            self.crew.tell(rank, SumKept(ids, [weight_of[c] for c in ids]))
        ask_sum(self.crew, self._route, self.state.numel)
        total = receive_sum(self.crew, self._route, self.state.numel, self.wire[0])
        return real(total).mul_(beyond)

    def _own_update(self, number: int, lr: float) -> torch.Tensor:
        """What the owner trains on its root set while the workers train their clients."""
        assert self.root is not None
        return self.root.update([*self.state.vectors, *self.strategy.sends()], number, lr)

    def _unsuspected(self, detector: Detector, clients: Sequence[int]) -> list[int]:
        """Scores all clients; returns those whose updates are to be used."""
        detector.begin(self._number, clients)
        self._show(detector, clients)
        asked = self.config.federated.detect.root_loss
        self.scores = detector.scores(list(self._root_losses(clients)) if asked else None)
        suspects = detector.suspects(self.scores)
        self.findings["suspects"] = suspects
        out = {s.client for s in suspects if s.excluded}
        return [c for c in clients if c not in out]

    def _root_losses(self, clients: Sequence[int]) -> Iterator[float]:
        """On the root set, of the model with each client's update; one update at a time."""
        assert self.root is not None
        everything = slice(0, self.state.numel)
        for client in clients:
            of_rank = self._by_rank([client])
            self._ask_block(of_rank, everything)
            [(_, [update])] = self.crew.hear_tensors(list(of_rank), Block)
            yield self.root.loss(self.state.vectors, update[0])

    def _show(self, looker: Rule | Detector, clients: Sequence[int]) -> None:
        for columns, block in self._blocks(clients, counters=False):
            looker.look(columns, block)

    def _settle(self) -> None:
        """Waits until nobody is at work: what went wrong is known, and what was sent is counted."""
        ranks = self._route.group[1:]
        for rank in ranks:
            self.crew.tell(rank, Report())
        self._hear(ranks)

    def _places(self, width: int, counters: bool) -> Iterator[slice]:
        """The columns of each block: of one dtype of the state, integers only if asked for."""
        end = 0
        for vector in self.state.vectors:
            begin, end = end, end + vector.numel()
            if counters or vector.is_floating_point():
                for first in range(begin, end, width):
                    yield slice(first, min(first + width, end))

    def _blocks(
        self, clients: Sequence[int], counters: bool = True
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """All updates in blocks of columns; the next is on its way while one is looked at."""
        of_rank = self._by_rank(clients)
        row_of = {client: row for row, client in enumerate(clients)}
        places = list(self._places(max(1, BLOCK_VALUES // len(clients)), counters))
        self._ask_block(of_rank, places[0])
        for place, following in zip(places, [*places[1:], None], strict=True):
            block = torch.empty(len(clients), place.stop - place.start)
            answers = self.crew.hear_tensors(list(of_rank), Block)
            if following:
                self._ask_block(of_rank, following)
            for ids, (_, [part]) in zip(of_rank.values(), answers, strict=True):
                block[[row_of[c] for c in ids]] = part
            yield place, block

    def _ask_block(self, of_rank: dict[int, list[int]], columns: slice) -> None:
        for rank, ids in of_rank.items():
            self.crew.tell(rank, GiveBlock(ids, columns.start, columns.stop))
