"""Waiting without burning a core.

A blocked MPI call polls at full speed, which costs a core for every idle rank. Here a
rank polls by itself: closely at first, then the longer it has waited the more rarely.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SPIN_SECONDS = 200e-6
"""A rank with a core of its own polls without a pause for this long."""
SHARE = 0.05
"""A pause is at most this share of the time already waited: what it adds stays small."""
EARLY = 0.9
"""Share of an expected wait in which the end is not looked for closely."""
LONGEST_EARLY_PAUSE = 50e-3
"""At most this long before a failure elsewhere is noticed."""
LONGEST_TICK = 1.0
"""A look counts for so many seconds at most, see `Awake`."""
LONGEST_PAUSE = 5e-3
"""To wake up and look costs some 50 us on a busy machine: at this pause 1 % of a core."""


def wait_until(ready: Callable[[], T | None], spin: bool, expected: float = 0.0) -> T:
    """Polls `ready` until it returns something other than None, and returns that.

    Args:
        ready: what is waited for; it is also what drives MPI's progress.
        spin: whether this rank has a core of its own, so that polling at full speed
            for a moment takes nothing from anybody.
        expected: seconds that it will probably take, as it did before; up to EARLY of them
            this rank hardly looks.
    """
    result = ready()
    if result is not None:
        return result
    start = time.perf_counter()
    while True:
        result = ready()
        if result is not None:
            return result
        waited = time.perf_counter() - start
        if waited < SPIN_SECONDS:
            if not spin:
                os.sched_yield()
            continue
        pause = min(SHARE * waited, LONGEST_PAUSE)
        early = EARLY * expected - waited
        if early > pause:
            pause = min(SHARE * expected, LONGEST_EARLY_PAUSE, early)
        time.sleep(pause)


class Awake:
    """Seconds in which this process ran: a job that was suspended as a whole has not waited.

    Attributes:
        seconds: up to the last look; look several times a second.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = time.monotonic()

    def look(self) -> float:
        """Seconds up to now."""
        now = time.monotonic()
        self.seconds += min(now - self._last, LONGEST_TICK)
        self._last = now
        return self.seconds
