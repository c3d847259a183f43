"""The tools of the tests themselves: the launchers, and pytest under mpirun (conftest.py)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import ROOT, Launcher, TimedOut, each_launcher, launchers, run_single

pytestmark = pytest.mark.launch

LIBRARIES = {"mpich": "MPICH", "openmpi": "Open MPI"}

HELLO = """
from mpi4py import MPI
import torch
x = torch.ones(1000)
MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, x.numpy())
if MPI.COMM_WORLD.rank == 0:
    print(MPI.COMM_WORLD.size, x.sum().item(), MPI.Get_library_version())
"""

SUITE = """
import os, pytest
from mpi4py import MPI

comm = MPI.COMM_WORLD
last = comm.rank == comm.size - 1
mode = os.environ["MODE"]

pytestmark = pytest.mark.mpi

if mode == "import" and last:
    raise RuntimeError("cannot be imported here")

def test_before():
    assert comm.allreduce(1) == comm.size

def test_mode():
    print(f"printed by rank {comm.rank}")
    assert not (mode in ("one", "hang") and last), "as told"
    assert mode != "all", "as told"
    if mode == "hang":
        comm.Barrier()
    if mode == "die" and last:
        os._exit(0)

def test_after():
    assert comm.allreduce(1) == comm.size

if mode == "differ" and last:
    def test_more():
        pass
"""


@pytest.fixture(params=sorted(launchers()) or [pytest.param("", marks=pytest.mark.skip("no MPI"))])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return launchers()[request.param]


@pytest.fixture
def suite(launcher: Launcher, tmp_path: Path):
    """Runs pytest on three ranks on a small suite that goes wrong in a chosen way."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = ["-m", "pytest", "--with-mpi", "--only-mpi", "-p", "no:cacheprovider", "--color=no"]

    def run(mode: str):
        end = str(tmp_path / "end")
        env = {"MODE": mode, "FEDMPI_TEST_GRACE": "1", "FEDMPI_TEST_END": end}
        return launcher.run(3, [*command, str(tmp_path)], timeout=120, env=env, cwd=tmp_path)

    return run


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_each_launcher_runs_its_own_library(launcher: Launcher) -> None:
    done = launcher.run(3, ["-c", HELLO], timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"3 3000.0 {LIBRARIES[launcher.name]}")


def test_a_job_without_launcher() -> None:
    done = run_single(
        ["-c", "import os, sys; print(os.environ['A'], os.environ.get('B')); sys.exit(3)"],
        timeout=60,
        env={"A": "1", "B": None},
    )
    assert (done.returncode, done.stdout) == (3, "1 None\n")


def test_children_see_no_launcher_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "MPI4PY_LIBMPI", "SLURM_JOBID"):
        monkeypatch.setenv(name, "7")
    done = run_single(
        ["-c", "import os; print(*(k for k, v in os.environ.items() if v == '7'))"], timeout=60
    )
    assert done.stdout == "\n"


def test_nothing_outlives_the_limit(launcher: Launcher) -> None:
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"still running after 4 s: .*mpirun -n 3") as caught:
        launcher.run(3, ["-c", script], timeout=4)
    assert time.monotonic() - started < 30
    ranks = [int(word) for word in caught.value.stdout.split()]
    assert len(ranks) == 3
    assert [rank for rank in ranks if is_alive(rank)] == []


def test_ranks_in_step(suite, tmp_path: Path) -> None:
    done = suite("good")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout.splitlines()[-1]
    assert done.stdout.count("test session starts") == 1
    assert (tmp_path / "end").exists()


@each_launcher(quick="mpich")
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("one", ["rank 2 of 3 failed", "printed by rank 2", "3 passed, 1 error"]),
        ("all", ["AssertionError: as told", "1 failed, 2 passed"]),
        ("hang", ["AssertionError: as told", "rank 2 of 3", "::test_mode failed, and other ranks"]),
        ("import", ["rank 2 of 3 failed", "RuntimeError: cannot be imported here"]),
        ("differ", ["-3 collected tests", "+4 collected tests", "test_more"]),
        ("die", []),
    ],
)
def test_a_failure_on_one_rank_fails_the_job(
    suite, mode: str, expected: list[str], tmp_path: Path
) -> None:
    done = suite(mode)
    printed = done.stdout + done.stderr
    # MPICH's mpirun may report success for a rank that left with status 0: no end is a failure too.
    reached_the_end = (tmp_path / "end").exists()
    assert done.returncode != 0 or (mode == "die" and not reached_the_end), printed
    assert [words for words in expected if words not in printed] == [], printed


def test_ranks_without_the_option_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    done = launcher.run(2, ["-m", "pytest", os.fspath(tmp_path)], timeout=120, cwd=tmp_path)
    assert done.returncode != 0
    assert "2 ranks run the same tests: add --with-mpi --only-mpi" in done.stdout + done.stderr
