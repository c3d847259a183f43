"""The owner's eye on its workers: who has been silent for too long, and whether all of them wait.

While the owner waits it asks every worker now and then for a sign of life (`heartbeat`). A worker
that answers is alive, however long its work takes; one that does not answer for longer than the
limit is stopped, stuck in a loop or in a call, or on a node that is gone. If all of them answer
that they wait, and have done so for longer than the limit, nothing will ever come.
"""

from __future__ import annotations

import faulthandler
import time
from typing import Literal

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.meeting import SECONDS_TO_DIE
from fedmpi.comm.rank_log import LOG, RANK_LOG
from fedmpi.comm.waiting import LONGEST_TICK
from fedmpi.errors import FedMPIError, SilentRank
from fedmpi.workers.heartbeat import FIRST_LIMIT, Ping, Pong

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_PINGS = 10.0
SHORTEST_LIMIT = 60.0
"""Of a limit that is chosen by itself: a busy machine may keep a rank from running for so long."""
TIMES_A_ROUND = 10.0
"""A limit that is chosen by itself is so many times the longest round seen."""


class Vigil:
    """Watches during the owner's waits; see the module.

    Args:
        endpoint: of rank 0.

    Attributes:
        ranks: of the workers that are watched.
        said: what was found out about silent workers, a sentence each.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ranks = list(range(1, endpoint.size))
        self.said: list[str] = []
        self._chosen: float | Literal["auto"] = "auto"
        self._longest_round: float | None = None
        # Time counts while the owner waits and runs: neither its own work nor a job that was
        # suspended makes a worker silent.
        self._awake = 0.0
        self._next_look = self._last_look = time.monotonic()
        self._pinged_at = 0.0
        self._heard_at = dict.fromkeys(self.ranks, 0.0)
        self._unanswered: set[int] = set()
        self._pongs: dict[int, Pong] = {}
        self._wait = (0, 0.0)
        self._ended: dict[int, float] = {}

    @property
    def limit(self) -> float:
        """Seconds of silence that are allowed."""
        if self._chosen != "auto":
            return self._chosen
        if self._longest_round is None:
            return FIRST_LIMIT
        return max(SHORTEST_LIMIT, TIMES_A_ROUND * self._longest_round)

    def choose(self, seconds: float | Literal["auto"]) -> None:
        """Takes over the configuration's limit; auto: derived from the rounds to come."""
        self._chosen, self._longest_round = seconds, None

    def observe(self, seconds: float) -> None:
        """A round in which the owner has waited so long has ended."""
        self._longest_round = max(self._longest_round or 0.0, seconds)

    def forget(self, ranks: list[int]) -> None:
        """Begins anew with those that are left."""
        self.ranks = ranks
        self._unanswered.clear()
        self._ended.clear()
        self._pongs.clear()
        self._heard_at = dict.fromkeys(ranks, self._awake)

    def look(self) -> None:
        """Called during every wait of the owner.

        Raises:
            SilentRank: a worker does not answer and cannot be ended alone.
            FedMPIError: all workers wait, and nothing will ever come.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._awake += min(now - self._last_look, LONGEST_TICK)
        self._last_look = now
        waits = self.endpoint.transport.waits
        if self._wait[0] != waits:
            self._wait = waits, self._awake
        self._listen()
        limit = self.limit
        if self._awake - self._pinged_at > min(SECONDS_BETWEEN_PINGS, limit / 6):
            self._ask(limit)
        for rank in self.ranks:
            # What was not asked is not answered: silence counts from a question on.
            if rank in self._unanswered and self._awake - self._heard_at[rank] > limit:
                self._end(rank)
        if self._awake - self._wait[1] > limit:
            self._refuse_deadlock(limit)

    def _listen(self) -> None:
        while (frame := self.endpoint.poll(Channel.BEAT)) is not None:
            self._heard_at[frame.source] = self._awake
            self._unanswered.discard(frame.source)
            self._pongs[frame.source] = frame.read(Pong)

    def _ask(self, limit: float) -> None:
        self._pinged_at = self._awake
        for rank in self.ranks:
            if rank not in self._unanswered:
                # A worker that had nothing to answer for long was not silent.
                self._heard_at[rank] = self._awake
                self._unanswered.add(rank)
                self.endpoint.send(rank, Channel.BEAT, Ping(limit))

    def report(self, rank: int) -> None:
        """Says of a worker that it has been silent for longer than the limit."""
        where = f"worker on rank {rank} ({self.endpoint.transport.host(rank)})"
        stack = "its stack is in its log" if RANK_LOG.path else "its stack is on stderr"
        self.said.append(
            f"{where} has been silent for {self.limit:.0f} s: {stack}, unless it was stopped"
        )
        LOG.error("%s", self.said[-1])

    def _end(self, rank: int) -> None:
        """Reports a silent worker, and has it ended if the others can go on without it."""
        transport = self.endpoint.transport
        if rank in self._ended:
            if self._awake - self._ended[rank] > SECONDS_TO_DIE:
                raise SilentRank(f"{self.said[-1]}; it could not be ended from here")
            return
        self.report(rank)
        if transport.in_process and RANK_LOG.stream:
            faulthandler.dump_traceback(file=RANK_LOG.stream)
        if not transport.survives:
            raise SilentRank(self.said[-1])
        self._ended[rank] = self._awake
        if not transport.kill(rank):
            beside = [r for r in self.ranks if transport.host(r) == transport.host(rank)]
            for other in set(beside) - self._ended.keys():
                self.endpoint.send(other, Channel.BEAT, Ping(self.limit, kill=rank))

    def _refuse_deadlock(self, limit: float) -> None:
        pongs = {rank: pong for rank, pong in self._pongs.items() if rank in self._heard_at}
        if len(pongs) < len(self.ranks) or any(p.waited <= limit for p in pongs.values()):
            return
        told = ", ".join(
            f"rank {rank} for {pong.waited:.0f} s in {pong.command or 'its loop'}"
            for rank, pong in sorted(pongs.items())[:5]
        )
        raise FedMPIError(
            f"the owner has waited for {self._awake - self._wait[1]:.0f} s, and all its workers "
            f"wait too ({told}): nothing will come any more; a message was lost, or this is a bug "
            "in FedMPI"
        )
