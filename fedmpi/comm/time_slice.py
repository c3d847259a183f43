"""Ranks that share cores: long turns instead of many short ones.

Linux gives each of several processes on a core a turn of a few milliseconds, on recent
kernels of less than one. A model and its gradients fill a core's cache, and every turn
fills it anew: with 7 workers on 2 cores training took up to 1.3 times as long.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

SLICE_SECONDS = 20e-3
"""Of a turn: a client's epoch of a small model, and far below the seconds of a round."""

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "ppc64le": 355, "riscv64": 274}
"""Numbers of the system call: few C libraries know it by name."""


def ask_for_long_turns() -> None:
    """Asks the scheduler for long turns for this thread, as a batch job that nobody waits for.

    A wish: a kernel before 6.12 does not know the length of a turn, a container may refuse,
    and a system that is not Linux has neither; all is then as it was.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        _ask(os.SCHED_BATCH, int(SLICE_SECONDS * 1e9))


def ask_for_short_turns() -> None:
    """Takes the wish for long turns back: others wait for this thread, message by message."""
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _ask(os.SCHED_OTHER, 0)


def _ask(policy: int, nanoseconds: int) -> None:
    call = _SCHED_SETATTR.get(platform.machine())
    if call is None:
        return
    # struct sched_attr: size, policy, flags, nice, priority, runtime (ns), deadline, period.
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, policy, 0, nice, 0, nanoseconds, 0, 0)
    ctypes.CDLL(None).syscall(call, 0, attributes, 0)
