"""A job that goes on when a worker dies: its clients move to others, and the round is repeated.

A round is a function of (model, seed, round, cohort), so that a round begun anew on other ranks
gives the bits that it would have given. What a worker alone knows dies with it: a job in which
that matters ends, and is continued from a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from fedmpi.comm.rank_log import LOG
from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import FedMPIError, LostRank, RemoteError
from fedmpi.federated.attacks import Appoint
from fedmpi.federated.commands import Report, Reported
from fedmpi.federated.datasets import Dataset
from fedmpi.federated.metrics import LostWorker
from fedmpi.federated.rounds import Home
from fedmpi.workers.crew import Crew

T = TypeVar("T")


def what_dies(config: Config, home: Home) -> str:
    """What a job cannot go on without when a worker dies; empty if there is nothing."""
    federated = config.federated
    if federated.on_lost_worker == "stop":
        return "on_lost_worker = 'stop'"
    if federated.secure.kind != "none":
        return f"its secrets (secure.kind = {federated.secure.kind!r}): no sum is taken twice"
    if federated.privacy.kind == "local":
        return "the noise that its clients have chosen (privacy.kind = 'local')"
    if home.remember:
        told = f"strategy.kind = {federated.strategy.kind!r}"
        if config.attack.kind != "none":
            told += f", attack.kind = {config.attack.kind!r}"
        return f"what its clients remember ({told})"
    return ""


class Survivors:
    """What is left of a job's workers, and their clients.

    Args:
        config: of the job.
        crew: the workers.
        dataset: which gives a dead worker's clients to another.
        home: where the clients live; changed in place when a worker dies.
        attackers: clients that attack, wherever they live.

    Attributes:
        clients: all that can be trained, ascending.
        gone: those that cannot any more, ascending.
    """

    def __init__(
        self,
        config: Config,
        crew: Crew,
        dataset: Dataset,
        home: Home,
        attackers: frozenset[int],
    ) -> None:
        self.clients = sorted(home.rank)
        self.gone: list[int] = []
        self._config = config
        self._crew = crew
        self._dataset = dataset
        self._home = home
        self._attackers = attackers
        self._homeless: list[int] = []
        self._moved: dict[int, list[tuple[int, int]]] = {}
        self._lost: list[LostWorker] = []

    def insist(self, action: Callable[[], T]) -> T:
        """What an action returns; while workers die in it, it is begun anew without them.

        Args:
            action: which changes nothing on the owner before its last message.

        Raises:
            LostRank: the job cannot go on.
        """
        lost: LostRank | None = None
        while True:
            try:
                if lost is not None:
                    self._go_on(lost)
                    lost = None
                return action()
            except LostRank as found:
                if reason := what_dies(self._config, self._home):
                    raise _ends(found, reason) from None
                lost = found

    def take_lost(self) -> list[LostWorker]:
        """Those that have died since this was last asked."""
        lost, self._lost = self._lost, []
        return lost

    def leave_out(self, clients: list[int]) -> None:
        """Goes on without some clients: they are in no later round."""
        for client in clients:
            del self._home.rank[client], self._home.rows[client], self._home.steps[client]
        self.clients = sorted(self._home.rank)
        self.gone = sorted([*self.gone, *clients])

    def _go_on(self, lost: LostRank) -> None:
        """Begins anew with those that are left; more of them may die in it."""
        self._homeless += self._crew.recover(lost)
        if not self._crew.ranks:
            raise FedMPIError(f"{lost}; no worker is left")
        # What was counted in the round that is given up does not belong to the next.
        self._crew.ask(lambda rank: Report(), Reported)
        while self._homeless:
            self._rehouse(self._homeless[0])
            del self._homeless[0]
        if not self.clients:
            raise FedMPIError(f"{lost}; nobody can read the clients' rows any more")
        for rank in sorted({self._home.rank[c] for c in self.clients} if self._attackers else ()):
            mine = sorted(c for c in self._attackers if self._home.rank.get(c) == rank)
            self._crew.tell(rank, Appoint(mine))

    def _rehouse(self, dead: int) -> None:
        """Finds a home for the clients of a dead worker, shard by shard."""
        home, host = self._home, self._crew.endpoint.transport.host(dead)
        moved = self._moved.setdefault(dead, [])  # its heir may die while more is handed over
        for shard in sorted({home.shard[c] for c, rank in home.rank.items() if rank == dead}):
            clients = [c for c in sorted(home.rank) if home.shard[c] == shard]
            heir = self._heir(shard)
            for client in clients if heir else ():
                home.rank[client] = heir
                moved.append((client, heir))
        lost = sorted(c for c, rank in home.rank.items() if rank == dead)
        self.leave_out(lost)
        said = [sentence for sentence in self._crew.vigil.said if f"rank {dead} " in sentence]
        record = LostWorker(dead, host, said[-1] if said else "its process died", moved, lost)
        LOG.warning("%s", record)
        self._lost.append(record)
        if lost:
            self._refuse_fewer()

    def _heir(self, shard: int) -> int:
        """A worker that has taken over a shard, the one with the fewest clients first; 0: none."""
        held = Counter(self._home.rank.values())
        for rank in sorted(self._crew.ranks, key=lambda rank: (held[rank], rank)):
            try:
                self._dataset.hand_over(self._crew, shard, rank)
            except RemoteError as error:
                LOG.warning("the clients of shard %d do not go to rank %d: %s", shard, rank, error)
            else:
                return rank
        return 0

    def _refuse_fewer(self) -> None:
        """Refuses to go on with fewer clients where their number was part of a promise.

        Raises:
            FedMPIError, UsageError: what was promised.
        """
        federated = self._config.federated
        if federated.privacy.kind != "none":
            raise FedMPIError(
                f"{len(self._home.rank)} clients are left, and privacy.kind = "
                f"{federated.privacy.kind!r} counts on more: continue from a checkpoint, where all "
                "clients can be read"
            )
        if federated.robust.kind != "none":
            size = cohort_size(len(self._home.rank), federated.fraction)
            federated.robust.require_clients(size)


def _ends(lost: LostRank, reason: str) -> LostRank:
    return LostRank(f"{lost}; the job does not go on without it: {reason}", lost.ranks)
