"""The worker's sign of life: while it waits, and between two clients, it answers the owner.

A beat costs a look at the clock; ten times a second it costs a look for messages. MPI may be
called by the main thread alone, so a worker in the middle of a long step cannot answer. It has
armed a timer of `faulthandler` instead, whose thread needs neither MPI nor Python: it writes the
stacks of all threads into the rank's log when the worker has been away for too long, whatever it
is doing. The owner's side is `vigil`.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import time
from typing import TYPE_CHECKING, Annotated

import msgspec

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.rank_log import LOG, RANK_LOG
from fedmpi.comm.waiting import LONGEST_TICK
from fedmpi.errors import FedMPIError, LostRank

if TYPE_CHECKING:
    from fedmpi.comm.endpoint import Endpoint

OWNER = 0
SECONDS_BETWEEN_LOOKS = 0.1
FIRST_LIMIT = 3600.0
"""Seconds that a rank may be silent for before it is known how long a round takes."""
LONGEST_LIMIT = 1e8
"""Three years: what a timer can be set to."""
STACK_SHARE = 0.8
"""Share of the limit after which a silent worker writes its stack: before the owner ends it."""
OWNER_LIMIT = 24 * 3600.0
"""Seconds for which a worker waits for any sign of the owner, which may be a person's script."""


class Ping(msgspec.Struct, frozen=True):
    """Show that you live.

    Attributes:
        limit: seconds after which a silent worker is taken for dead.
        kill: rank to end, one on this node that is silent; 0: nobody.
    """

    limit: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_LIMIT)]
    kill: int = 0


class Pong(msgspec.Struct, frozen=True):
    """The answer.

    Attributes:
        command: name of the command that is obeyed; empty if none is.
        waited: seconds that it has already waited for one thing; 0: it is at work.
    """

    command: str
    waited: float


class Heartbeat:
    """Answers the owner, whatever the worker waits for.

    Args:
        endpoint: of the worker, whose transport's `watch` is to call `in_wait`.

    Attributes:
        command: name of the command that is obeyed; empty if none is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.command = ""
        self._limit = FIRST_LIMIT
        self._next_look = 0.0
        self._last_look = time.monotonic()
        self._armed_at = 0.0
        self._wait = (0, 0.0)  # the number of the wait, and when it was first seen
        self._unheard = 0.0

    def keep_limit(self, seconds: float) -> None:
        """Takes over the owner's limit."""
        if seconds != self._limit:
            self._limit = seconds
            self.arm(time.monotonic())

    def in_wait(self) -> None:
        """Called during every wait; raises when there is no owner any more."""
        now = time.monotonic()
        if now >= self._next_look:
            self._look(now, waiting=True)

    def between(self) -> None:
        """Called now and then during long work.

        Raises:
            LostRank: a rank has died, so that what is worked on is of no use any more.
        """
        now = time.monotonic()

        def look() -> bool:
            self._look(now, waiting=False)
            return True

        if now >= self._next_look:
            transport = self.endpoint.transport
            watch, transport.watch = transport.watch, None
            try:
                transport.wait(look)
            finally:
                transport.watch = watch

    def _look(self, now: float, waiting: bool) -> None:
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._unheard += min(now - self._last_look, LONGEST_TICK)
        self._last_look = now
        if now - self._armed_at > STACK_SHARE * self._limit / 4:
            self.arm(now)
        waits = self.endpoint.transport.waits
        if self._wait[0] != waits:
            self._wait = waits, now
        while (frame := self.endpoint.poll(Channel.BEAT, OWNER)) is not None:
            self._unheard = 0.0
            ping: Ping = frame.read(Ping)
            self.keep_limit(ping.limit)
            if 0 < ping.kill < self.endpoint.size:
                LOG.warning("rank %d is silent: ended for the owner", ping.kill)
                self.endpoint.transport.kill(ping.kill)
            waited = now - self._wait[1] if waiting else 0.0
            self.endpoint.send(OWNER, Channel.BEAT, Pong(self.command, waited))
        if self._unheard > OWNER_LIMIT and waiting:
            raise FedMPIError(
                f"rank {self.endpoint.rank} has heard nothing of the owner for "
                f"{OWNER_LIMIT / 3600:.0f} hours: start the job again"
            )

    def arm(self, now: float) -> None:
        """Puts the timer off. Threads of one process have none: the owner prints their stacks."""
        self._armed_at = now
        if not self.endpoint.transport.in_process:
            stream = RANK_LOG.stream or sys.__stderr__
            assert stream
            faulthandler.dump_traceback_later(STACK_SHARE * self._limit, file=stream)

    def disarm(self) -> None:
        """Stops the timer until the next look: who waits for others at a meeting is not silent."""
        self._armed_at = -math.inf
        if not self.endpoint.transport.in_process:
            faulthandler.cancel_dump_traceback_later()


def owner_is_lost(rank: int, lowest: int) -> LostRank:
    """What a worker ends with when the owner has died; the lowest rank left says it for all."""
    text = "the owner (rank 0) has died, and with it the job" if rank == lowest else ""
    return LostRank(text, (OWNER,))
