"""Rounds of updates that are averaged: FedAvg and what strategies make of it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from fedmpi.config import Config
from fedmpi.errors import UsageError
from fedmpi.federated.aggregation import Asked, aggregation_of
from fedmpi.federated.commands import Borrow, Report, Reported, Train
from fedmpi.federated.descent import Descent
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.placement import WORTH_SECONDS, saved_rows, spread
from fedmpi.federated.privacy import privacy_of
from fedmpi.federated.remembered import Remembers
from fedmpi.federated.rounds import Home, Rounds
from fedmpi.federated.strategy import Cohort, Mean, Strategy
from fedmpi.federated.tally import Tally
from fedmpi.federated.terms import Terms
from fedmpi.federated.update import UPDATE
from fedmpi.workers.crew import Crew


class Averaging(Rounds):
    """All clients start from the same model, and the strategy gets the mean of their updates."""

    def __init__(
        self, config: Config, crew: Crew, home: Home, state: FlatState, strategy: Strategy
    ) -> None:
        super().__init__(config, crew, home, state)
        self.strategy = strategy
        self._descent = Descent(config.federated.momentum)
        self._row_seconds = 0.0  # of training, in the round before
        self.aggregation = aggregation_of(config, crew, len(home.rows))
        self.privacy = privacy_of(config, state.vectors, len(home.rows))
        if self.privacy and self.strategy.parts():
            raise UsageError(
                f"privacy.kind = {config.federated.privacy.kind!r} with strategy "
                f"{config.federated.strategy.kind}, whose clients send more than their update: "
                "nothing bounds that"
            )

    def _send(self, number: int, cohort: Sequence[int], lr: float) -> list[int]:
        clients = sorted(cohort)
        weights = self.strategy.weights(self._cohort(clients))
        self._parts = {UPDATE: self.state.numel} | self.strategy.parts()
        terms = Terms()
        if self.privacy:
            weights = [self.privacy.weight] * len(clients)
            self._parts |= self.privacy.parts()
            terms = self.privacy.terms(len(clients))
        self._number = number
        self._weight_of = dict(zip(clients, weights, strict=True))
        of_rank = self._placed(clients)
        ranks = list(of_rank)
        length = sum(self._parts.values())
        with self.broadcast(ranks, self.strategy.sends()) as route:
            asked = Asked(number, clients, self._rank_of, ranks, route, length)
            self.aggregation.prepare(asked)
            for rank, ids in of_rank.items():
                shares = [self._weight_of[c] for c in ids]
                self._lend(rank, ids)
                self.crew.tell(rank, Train(number, ids, shares, lr, self._parts, terms))
            self.aggregation.ask(asked)
            self.crew.tell_all(ranks, Report())
        return ranks

    def _receive(self) -> None:
        self.aggregation.receive(self.wire[0], self._wait)

    def _update(self, cohort: Sequence[int], reports: Sequence[Reported]) -> None:
        total = self.aggregation.total(reports, cohort).to(self.state.vectors[0].device)
        self.findings |= self.aggregation.findings
        self._worker_traffic |= self.aggregation.traffic
        if self.privacy:
            self._protect(self._number, total, len(cohort), len(self._weight_of))
        elif len(cohort) < len(self._weight_of):
            total.div_(sum(self._weight_of[c] for c in cohort))
        update, *parts = total.split(list(self._parts.values()))
        names = list(self._parts)[1:]
        self.strategy.apply(
            Mean(update, self._cohort(cohort), dict(zip(names, parts, strict=True)))
        )

    def exhausted(self) -> str:
        return self.privacy.exhausted() if self.privacy else ""

    def remarks(self) -> list[str]:
        return self.privacy.remarks() if self.privacy else []

    def carried(self) -> dict[str, Remembers]:
        private = {"privacy": self.privacy} if self.privacy else {}
        return super().carried() | {"strategy": self.strategy} | private

    def _without_clients(self, number: int) -> None:
        """With privacy nobody is to see that there were none: the model moves by noise alone."""
        if self.privacy:
            length = self.state.numel + sum(self.privacy.parts().values())
            device = self.state.vectors[0].device
            total = torch.zeros(length, dtype=torch.float64, device=device)
            self._protect(number, total, 0, 0)
            self.strategy.apply(Mean(total[: self.state.numel], self._cohort([])))

    def _protect(self, number: int, total: torch.Tensor, included: int, among: int) -> None:
        assert self.privacy
        self.privacy.finish(number, total, included, among)
        self.findings |= self.privacy.findings()

    def _placed(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """Settles who trains whom in this round; see `_by_rank`."""
        home = self.home
        self._rank_of = home.rank
        if home.lends:
            placed = spread(clients, home.rows, home.rank, self.crew.ranks)
            saved = saved_rows(placed, home.rows, home.rank) * self._row_seconds
            if saved > WORTH_SECONDS or self.config.comm.balance == "on":
                self._rank_of = placed
        return self._by_rank(clients)

    def _lend(self, rank: int, clients: Sequence[int]) -> None:
        """Tells a worker which of its clients of this round are in the shards of others."""
        home = self.home
        lent = {c: home.shard[c] - 1 for c in clients if home.rank[c] != rank}
        if lent:
            self.crew.tell(rank, Borrow(lent))

    def _by_rank(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """The clients of each rank that trains any in this round, by ascending ranks."""
        of_rank: dict[int, list[int]] = {}
        for client in clients:
            of_rank.setdefault(self._rank_of[client], []).append(client)
        return dict(sorted(of_rank.items()))

    def _cohort(self, clients: Sequence[int]) -> Cohort:
        rows = [self.home.rows[c] for c in clients]
        steps = [self._descent.reach(self.home.steps[c]) for c in clients]
        return Cohort(list(clients), rows, steps, len(self.home.rows))

    def _seconds(self, tallies: Sequence[Tally], rows: int) -> tuple[float, float, float]:
        self._row_seconds = sum(t.train_seconds for t in tallies) / rows
        # Workers train at the same time: on average so long, the slowest so long.
        train = fmean(t.train_seconds for t in tallies)
        add = fmean(t.sum_seconds for t in tallies)
        return train, add, max(t.train_seconds + t.sum_seconds for t in tallies)
