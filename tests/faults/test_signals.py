"""Signals that ask a run to leave: a checkpoint, exit status 75, and the command to go on with."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from fedmpi.federated.checkpoint import rounds_in
from tests.faults.jobs import Ended, rounds_of, started
from tests.launch import Launcher

SLOW = '''
import time

from torch import nn


class Slow(nn.Sequential):
    """Takes longer over a round than a signal leaves."""

    def forward(self, x):
        if self.training:
            time.sleep(0.5)
        return super().forward(x)


def slow(row_shape, classes):
    return Slow(nn.Flatten(), nn.Linear(64, classes))
'''


@pytest.fixture
def running(prepared: Path, here: Path):
    """Starts a run of very many rounds on two workers."""
    (here / "slow.py").write_text(SLOW)

    def start(launcher: Launcher | None, *options: str):
        workers = [] if launcher else ["--workers=2"]
        arguments = ["--path", prepared, "--rounds=100000", "--epochs=1", "--name=it", *workers]
        return started(launcher, 3, "run", *arguments, *options)

    return start


def check(done: Ended, here: Path, name: str) -> None:
    """It has left with a checkpoint of its last round, and says so once."""
    folder = here / "runs" / "it"
    assert done.status == 75, done
    said = done.told(f"{name}: the state after round ", "python -m fedmpi run --resume runs/it")
    told = re.search(r"after round (\d+) of 100000 is in (\S+);", said)
    assert told, said
    assert (here / told[2]).exists(), said
    assert rounds_in(folder / "checkpoints")[0] == int(told[1])
    assert rounds_of(folder) >= int(told[1]) >= 2
    assert not list(folder.rglob("*.tmp*"))


@pytest.mark.launch
def test_one_process(running, here: Path) -> None:
    with running(None) as job:
        job.wait_for_round(here / "runs" / "it")
        job.process.send_signal(signal.SIGTERM)
        done = job.end()
    check(done, here, "SIGTERM")


@pytest.mark.launch
def test_mpirun_forwards_it(launcher: Launcher, running, here: Path) -> None:
    """The documented way, which works under both: SIGUSR1 to mpirun."""
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        job.process.send_signal(signal.SIGUSR1)
        done = job.end()
    check(done, here, "SIGUSR1")
    assert "go on with: mpirun -n 3 python -m fedmpi run --resume runs/it" in done.stderr


@pytest.mark.launch
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 2])
def test_one_rank(launcher: Launcher, running, here: Path, rank: int) -> None:
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        job.rank(rank).send_signal(signal.SIGUSR2)
        done = job.end()
    check(done, here, "SIGUSR2")


@pytest.mark.launch
@pytest.mark.parametrize("strategy", ["fedavg", pytest.param("scaffold", marks=pytest.mark.long)])
def test_a_long_round_is_given_up(running, here: Path, strategy: str) -> None:
    """The state after the round before is what is left; of SCAFFOLD the newest checkpoint."""
    options = ["--model=slow:slow", f"--strategy.kind={strategy}", "--checkpoint.every-rounds=1"]
    with running(None, *options, "--batch-size=200") as job:
        job.wait_for_round(here / "runs" / "it")
        begun = time.monotonic()
        job.process.send_signal(signal.SIGUSR1)
        done = job.end()
    assert time.monotonic() - begun < 10
    check(done, here, "SIGUSR1")


@pytest.mark.launch
def test_before_the_first_round(running, here: Path) -> None:
    """While data is opened: there is nothing to go on with, and no folder that is in the way."""
    with running(None) as job:
        time.sleep(1.0)
        job.process.send_signal(signal.SIGTERM)
        done = job.end()
    if not (here / "runs" / "it").exists():
        assert done.status == 75, done
        done.told("SIGTERM: no round has begun; go on with: the same command")


@pytest.mark.launch
def test_a_second_ctrl_c(running, here: Path) -> None:
    with running(None, "--model=slow:slow", "--batch-size=5") as job:
        deadline = time.monotonic() + 60
        while not (here / "runs" / "it" / "metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(2):
            time.sleep(0.3)
            job.process.send_signal(signal.SIGINT)
        done = job.end()
    assert done.status == 130, done
    assert done.seconds < 4


@pytest.mark.launch
def test_resumed_under_the_other_launcher(launcher: Launcher, running, here: Path) -> None:
    """From two workers to as many of one process, as requeue scripts do."""
    with running(launcher) as job:
        job.wait_for_round(here / "runs" / "it")
        os.kill(job.process.pid, signal.SIGUSR1)
        done = job.end()
    check(done, here, "SIGUSR1")
    left = rounds_in(here / "runs" / "it" / "checkpoints")[0]
    with started(None, 1, "run", "--resume=runs/it", f"--rounds={left + 2}") as job:
        assert job.process.wait(120) == 0, job.printed()
    assert rounds_of(here / "runs" / "it") == left + 2


@pytest.mark.launch
def test_other_programs_end_as_ever(here: Path) -> None:
    (here / "script.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    with started(None, 1, "exec", "script.py") as job:
        while "begun" not in job.printed()[0]:
            assert job.process.poll() is None, job.printed()
            time.sleep(0.1)
        job.process.terminate()
        done = job.end()
    assert done.status == -signal.SIGTERM
