"""Ranks that are killed, and Ctrl-C: nothing hangs, and a person is told where the rounds are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi.comm.last_words import LastWords
from tests.faults.jobs import Ended, half_written, rounds_of, started
from tests.launch import ROOT, Launcher

LAST_WORDS = "fedmpi: rank 0 was ended from outside, or because another rank was lost"


@pytest.fixture
def running(prepared: Path, here: Path):
    """Starts a run of very many rounds, and waits for the first."""

    def start(launcher: Launcher | None, ranks: int = 3):
        workers = [] if launcher else ["--workers=2"]
        arguments = ["--path", prepared, "--rounds=100000", "--epochs=1", "--name=it", *workers]
        return started(launcher, ranks, "run", *arguments)

    return start


def check_what_is_left(here: Path, done: Ended) -> None:
    """The rounds that had ended can be read, and they are no fewer than those that were told."""
    folder = here / "runs" / "it"
    assert done.status != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert half_written(here) == []
    assert {path.name for path in folder.iterdir()} <= {
        "config.toml",
        "metrics.jsonl",
        "checkpoints",
    }
    told = re.findall(r"rounds up to (\d+) of 100000 are in runs/it/metrics\.jsonl", done.stderr)
    assert len(told) <= 1, done.stderr
    assert rounds_of(folder) >= int(told[0] if told else 2)


@pytest.mark.launch
def test_a_killed_worker(launcher: Launcher, running, here: Path) -> None:
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        job.rank(1).kill()
        done = job.end()
    check_what_is_left(here, done)
    assert f"{LAST_WORDS}: rounds up to " in done.stderr


@pytest.mark.launch
def test_a_killed_owner(mpich: Launcher, running, here: Path) -> None:
    with running(mpich) as job:
        job.wait_for_round(here / "runs" / "it")
        job.rank(0).kill()
        done = job.end()
    check_what_is_left(here, done)
    assert f"{LAST_WORDS}: rounds up to " in done.stderr


@pytest.mark.launch
def test_a_stopped_job(launcher: Launcher, running, here: Path) -> None:
    """SIGTERM to mpirun, as batch systems send it at a job's time limit."""
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        job.process.terminate()
        done = job.end()
    check_what_is_left(here, done)
    # Open MPI gives the ranks no time, unless a round is as short as these are.
    left = "SIGTERM: the state after round "
    assert left in done.stderr or f"{LAST_WORDS}: rounds up to " in done.stderr
    assert launcher.name != "mpich" or (done.status, left in done.stderr) == (75, True)


@pytest.mark.launch
def test_ctrl_c(launcher: Launcher, running, here: Path) -> None:
    """A terminal sends SIGINT to mpirun's whole process group."""
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        os.killpg(job.process.pid, signal.SIGINT)
        done = job.end()
    check_what_is_left(here, done)
    # MPICH hands the signal to rank 0; Open MPI makes a SIGTERM of it, and soon ends the ranks.
    name = "SIGINT" if launcher.name == "mpich" else "SIGTERM"
    left = f"fedmpi: rank 0: {name}: the state after round "
    assert left in done.stderr or f"{LAST_WORDS}: rounds up to " in done.stderr
    assert launcher.name != "mpich" or left in done.stderr


@pytest.mark.launch
def test_an_interrupted_launcher(mpich: Launcher, running, here: Path) -> None:
    """`kill -INT` of mpirun alone."""
    with running(mpich) as job:
        job.wait_for_round(here / "runs" / "it")
        job.process.send_signal(signal.SIGINT)
        done = job.end()
    check_what_is_left(here, done)
    assert "fedmpi: rank 0: SIGINT: the state after round " in done.stderr


@pytest.mark.launch
def test_one_process_interrupted(running, here: Path) -> None:
    with running(None) as job:
        job.wait_for_round(here / "runs" / "it")
        job.process.send_signal(signal.SIGINT)
        done = job.end()
    check_what_is_left(here, done)
    assert done.status == 75
    done.told("SIGINT: the state after round ", "go on with: python -m fedmpi run --resume runs/it")


ENDS = """
import os, signal, time
import psutil
from fedmpi.comm.last_words import LAST_WORDS
LAST_WORDS.listen("")
for number in range(5):
    LAST_WORDS.keep(f"number {number}")
"""


def end(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a process that has last words; waits for all who could still print."""
    command = [sys.executable, "-c", ENDS + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    "script",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(0)",
        "os.killpg(0, signal.SIGTERM)",
        "LAST_WORDS.farewell(); LAST_WORDS.keep('number 4'); os._exit(1)",
    ],
)
def test_last_words(script: str) -> None:
    assert end(f"os.setsid()\n{script}").stderr == f"{LAST_WORDS}: number 4\n"


@pytest.mark.parametrize(
    "script",
    ["LAST_WORDS.farewell()", "LAST_WORDS.farewell(); os._exit(1)"],
)
def test_a_farewell(script: str) -> None:
    assert end(script).stderr == ""


def test_last_words_cost_nothing() -> None:
    """They stop no job when the shell does not read, and take microseconds when it does."""
    script = """
shell = psutil.Process().children()[0].pid
os.kill(shell, signal.SIGSTOP)
begun = time.monotonic()
for number in range(20000):
    LAST_WORDS.keep("a status of some length")
assert time.monotonic() - begun < 5
os.kill(shell, signal.SIGCONT)
time.sleep(0.5)
LAST_WORDS.farewell()
"""
    done = end(script)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_shell_no_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("/bin/sh")

    monkeypatch.setattr(subprocess, "Popen", fails)
    words = LastWords()
    words.listen("mpirun of Open MPI")
    words.keep("number 1")
    words.farewell()
    assert words.status == "number 1"
