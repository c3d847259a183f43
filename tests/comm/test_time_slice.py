"""Long turns: asked for where Linux knows them, and never an error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = """
import os
from fedmpi.comm.time_slice import ask_for_long_turns
{before}
ask_for_long_turns()
print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
"""


def asked(before: str = "") -> tuple[int, int]:
    """Policy and nice value of a process that has asked."""
    command = [sys.executable, "-c", ASK.format(before=before)]
    policy, nice = subprocess.check_output(command, text=True, timeout=60).split()
    return int(policy), int(nice)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="not Linux")
def test_a_rank_becomes_a_batch_process_and_stays_as_nice() -> None:
    assert asked() == (os.SCHED_BATCH, os.getpriority(os.PRIO_PROCESS, 0))
    assert asked("os.nice(3)")[1] == os.getpriority(os.PRIO_PROCESS, 0) + 3


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="not Linux")
def test_a_policy_that_somebody_chose_stays() -> None:
    chosen = "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"
    assert asked(chosen)[0] == os.SCHED_IDLE


def test_an_unknown_machine_is_left_alone() -> None:
    nothing_asked = asked("import platform; platform.machine = lambda: 'm68k'")
    assert nothing_asked[0] == 0
