"""Messages that never arrive or come twice: nothing hangs, and no result is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.federated.model_file import load_model
from tests.faults.jobs import Ended, started
from tests.launch import Launcher, each_launcher

pytestmark = [pytest.mark.launch, pytest.mark.usefixtures("here")]


def lossy(launcher: Launcher, prepared: Path, fault: str, sealed: bool = True) -> Ended:
    job = ["--path", prepared, "--rounds=2", "--epochs=1", "--name=it"]
    job += ["--secure-transport"] if sealed else []
    env = {"FEDMPI_FAULTS": fault}
    with started(launcher, 3, "run", *job, "--silence-seconds=5", env=env) as running:
        running.process.wait(60)
        return running.end()


@each_launcher(quick="openmpi")
def test_the_last_word_to_a_worker(launcher: Launcher, prepared: Path, here: Path) -> None:
    """All is done and written by then; MPI would wait for that worker for ever."""
    done = lossy(launcher, prepared, "drop rank=0 round=2 at=evaluate")
    assert "the job is over, but rank 1 has not heard that for 5 s" in done.told("was lost")
    assert load_model(here / "runs" / "it" / "model.h5")
    assert '"exit_status": 0' in (here / "runs" / "it" / "outcome.json").read_text()


@each_launcher(quick="mpich")
def test_a_part_of_a_sum(launcher: Launcher, prepared: Path, here: Path) -> None:
    """A message of another length comes in its place; the worker is alive."""
    done = lossy(launcher, prepared, "drop rank=1 round=1 at=Train")
    assert done.status != 0
    assert "fedmpi: rank 0: " in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "lost rank" not in done.stderr


@each_launcher(quick="mpich")
@pytest.mark.parametrize("fault", ["drop", "duplicate"])
def test_a_command_without_sealed_messages(launcher: Launcher, prepared: Path, fault: str) -> None:
    """The frames are counted; the next command tells that this one was lost, or came twice."""
    done = lossy(launcher, prepared, f"{fault} rank=0 round=1 at=Broadcast", sealed=False)
    assert done.status != 0
    assert "fedmpi: rank 1: rank 1 got frame" in done.stderr
    assert "on channel command, where frame" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@each_launcher(quick="mpich")
def test_a_fault_at_a_point_that_there_is_not(launcher: Launcher, prepared: Path) -> None:
    """It is said, since a person has mistyped it."""
    done = lossy(launcher, prepared, "kill rank=1 at=Trian; delay rank=2 at=Report", sealed=False)
    assert done.status == 0
    assert "fedmpi: rank 1: the fault was not reached: kill rank=1 at=Trian\n" in done.stderr
    assert done.stderr.count("not reached") == 1
