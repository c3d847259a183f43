"""Signals are noted at once and obeyed where it is safe; each case in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.launch import ROOT

BEGIN = """
import os, signal, time
from fedmpi.comm import signals
from fedmpi.comm.signals import SIGNALS
from fedmpi.errors import FedMPIError, Interrupted
signals.SECONDS = 0.2
SIGNALS.listen()
send = lambda number: os.kill(os.getpid(), number)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_signal_is_noted_and_raised_at_once_when_nothing_can_be_lost(name: str) -> None:
    script = f"""
send(signal.{name})
print(SIGNALS.name)
try:
    with SIGNALS.at_once():
        print("not reached")
except Interrupted as error:
    print("raised", error)
"""
    assert run(script).stdout.split() == [name, "raised", name]


def test_a_patient_block_goes_on_and_is_given_up() -> None:
    script = """
try:
    with SIGNALS.patient():
        send(signal.SIGINT)
        print(SIGNALS.name, flush=True)
        time.sleep(30)
except Interrupted as error:
    print("given up", error)
time.sleep(1.5)
print("no alarm is left")
"""
    found = run(script)
    assert found.stdout.splitlines() == ["SIGINT", "given up SIGINT", "no alarm is left"]


def test_a_second_ctrl_c_is_one() -> None:
    script = """
with SIGNALS.patient():
    send(signal.SIGUSR1)
    try:
        send(signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        print("interrupted")
"""
    assert run(script).stdout == "interrupted\n"


def test_a_signal_to_another_rank() -> None:
    script = """
SIGNALS.told(3, "SIGUSR2")
print(SIGNALS.name)
"""
    assert run(script).stdout == "SIGUSR2\n"
    script = """
SIGNALS.release()
try:
    SIGNALS.told(3, "SIGUSR2")
except FedMPIError as error:
    print(error)
"""
    assert run(script).stdout == "rank 3 was sent SIGUSR2\n"


@pytest.mark.parametrize("before", [True, False])
def test_what_is_released_does_what_it_always_did(before: bool) -> None:
    calls = ["send(signal.SIGUSR1)", "SIGNALS.release()"]
    script = "\n".join(calls if before else reversed(calls)) + "\nprint('not reached')"
    done = run(script)
    assert (done.returncode, done.stdout) == (-signal.SIGUSR1, "")
