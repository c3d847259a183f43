"""How the living come together after a death, and what becomes of those that do not come.

An agreement of ULFM waits for every rank that lives, and one that is stopped or stuck lives. So
each worker says again and again that it has come, over the communicator of the whole world, which
nobody revokes. The owner listens: who has been silent for longer than the limit is ended, by the
owner or by a worker of its node, and is then one more of the dead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmpi.comm.rank_log import LOG
from fedmpi.errors import FedMPIError, LostRank

if TYPE_CHECKING:
    from mpi4py import MPI

    from fedmpi.comm.ulfm import Members

OWNER = 0
HERE = 0
"""Tag of a worker's word. Tags from 1 on: what the owner orders in the meeting of that number."""
SECONDS_BETWEEN_WORDS = 0.5
SECONDS_TO_DIE = 10.0
"""After a silent rank was ended, its death has to be noticed within this time."""
SECONDS_WITHOUT_OWNER = 10.0
"""For so long workers wait for each other when the owner is dead, to tell it with one voice."""


class Meeting:
    """One meeting, as one rank sees it.

    Args:
        mpi: mpi4py's module.
        members: who may come.
        number: of the meeting, the same on all ranks, from 1.
        limit: on the owner, seconds of silence that are allowed; on a worker, seconds for which
            it waits for the owner.
        report: told of each silent rank before it is ended; on the owner.
    """

    def __init__(
        self,
        mpi: Any,
        members: Members,
        number: int,
        limit: float,
        report: Callable[[int], None],
    ) -> None:
        self._mpi = mpi
        self._world: MPI.Intracomm = mpi.COMM_WORLD
        self._members = members
        self._number = number
        self._limit = limit
        self._report = report
        self._next = 0.0
        self._heard: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._word: MPI.Request | None = None
        self._orders: list[MPI.Request] = []

    def attend(self, waited: float) -> None:
        """Does this rank's part; called again and again until all have come.

        Args:
            waited: seconds since the meeting began.

        Raises:
            FedMPIError: there will be no meeting.
        """
        if waited < self._next:
            return
        self._next = waited + SECONDS_BETWEEN_WORDS
        if self._members.me == OWNER:
            self._listen(waited)
        else:
            self._say(waited)

    def _listen(self, waited: float) -> None:
        """The owner's part."""
        living = [rank for rank in self._members.living if rank != OWNER]
        for rank in living:
            if self._take(rank, HERE) is not None:
                self._heard[rank] = waited
            if waited - self._heard.get(rank, 0.0) > self._limit and rank not in self._ended:
                self._ended[rank] = waited
                self._report(rank)
                self._end(rank, living)
        over = [r for r in living if waited - self._ended.get(r, waited) > SECONDS_TO_DIE]
        if over or waited > 2 * self._limit + SECONDS_TO_DIE:
            who = ", ".join(f"rank {rank} on {self._members.hosts[rank]}" for rank in over)
            raise FedMPIError(
                f"a rank has died, and the others did not come together within {waited:.0f} s: "
                f"{who or 'one of them'} hangs and could not be ended"
            )

    def _end(self, rank: int, living: list[int]) -> None:
        members = self._members
        if members.kill(rank):
            return
        order = np.array([rank], np.int32)
        for other in living:
            if members.hosts[other] == members.hosts[rank] and other not in self._ended:
                with contextlib.suppress(self._mpi.Exception):
                    self._orders.append(self._world.Isend(order, other, self._number))

    def _say(self, waited: float) -> None:
        """A worker's part."""
        living = self._members.living
        if OWNER not in living:
            # One after the other: who speaks first ends the job.
            place = min(living.index(self._members.me), 4)
            if waited > SECONDS_WITHOUT_OWNER + SECONDS_BETWEEN_WORDS * place:
                raise LostRank("the owner (rank 0) has died, and with it the job", (OWNER,))
            return
        if waited > self._limit:
            raise FedMPIError(
                f"a rank has died, and the owner did not come for {self._limit / 3600:.0f} hours: "
                "start the job again"
            )
        with contextlib.suppress(self._mpi.Exception):
            # Not before the last one was heard: the owner may be a person's script, and away.
            if self._word is None or self._word.Test():
                self._word = self._world.Issend(np.zeros(1, np.int32), OWNER, HERE)
        order = self._take(OWNER, self._number)
        if order in living:
            LOG.warning("rank %d is silent: ended for the owner", order)
            self._members.kill(order)

    def _take(self, source: int, tag: int) -> int | None:
        """The number that a rank has sent, if one has arrived."""
        number = np.zeros(1, np.int32)
        with contextlib.suppress(self._mpi.Exception):
            message = self._world.Improbe(source, tag)
            if message is not None:
                message.Recv(number)
                return int(number[0])
        return None
