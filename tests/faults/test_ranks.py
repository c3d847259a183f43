"""Too few, too many or the wrong ranks; no MPI, or two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.jobs import run
from tests.launch import Launcher, launchers

pytestmark = pytest.mark.launch


def test_one_rank(launcher: Launcher, prepared: Path, here: Path) -> None:
    done = run(launcher, 1, f"--path={prepared}")
    done.told(
        "started 1 rank, which is the owner: no worker is left for the 2 shards in",
        "run with mpirun -n 3, or without a launcher",
    )
    assert done.status == 2


@pytest.mark.parametrize("ranks", [2, 4])
def test_more_or_fewer_workers_than_shards(
    mpich: Launcher, prepared: Path, here: Path, ranks: int
) -> None:
    done = run(mpich, ranks, f"--path={prepared}")
    workers = f"{ranks - 1} worker{'s' * (ranks > 2)}"
    done.told(
        f"2 shards in {prepared} but {workers}: run with mpirun -n 3, "
        f"or prepare again with --workers {ranks - 1}"
    )
    assert done.status == 2
    assert not (here / "runs").exists()


def test_other_workers_than_ranks(mpich: Launcher, prepared: Path, here: Path) -> None:
    done = run(mpich, 2, f"--path={prepared}", "--workers=2")
    done.told("workers(2) + owner(1) != ranks(2): run with mpirun -n 3, or leave --workers out")


@pytest.mark.parametrize("workers", [1, 3])
def test_more_or_fewer_threads_than_shards(refused, prepared: Path, workers: int) -> None:
    error = str(refused("run", f"--path={prepared}", f"--workers={workers}"))
    assert f"2 shards in {prepared} but {workers} worker" in error


def test_mpi_without_a_launcher(refused, prepared: Path) -> None:
    error = str(refused("run", f"--path={prepared}", "--transport=mpi"))
    assert "no launcher started this process: run mpirun -n 3 python -m fedmpi" in error


def test_launcher_and_library_of_two_mpis(launcher: Launcher, here: Path) -> None:
    """Each rank is a world of its own then; one speaks for all, and no work is done N times."""
    if len(launchers()) < 2:
        pytest.skip("needs both MPIs")
    other = launchers()["mpich" if launcher.name == "openmpi" else "openmpi"]
    library = other.variables.get("MPI4PY_LIBMPI")
    done = run(launcher, 2, "--source=digits", env={"MPI4PY_LIBMPI": library})
    found = "sees a world of 1" if launcher.name == "mpich" else "cannot be started by it"
    done.told("started 2 processes, but the MPI library of this Python", found, "different MPIs")
    assert done.status == 2
    assert {path.name for path in here.iterdir()} <= {"own.py", "__pycache__"}


def test_no_mpi_library(mpich: Launcher, here: Path) -> None:
    done = run(mpich, 2, "--source=digits", env={"MPI4PY_LIBMPI": "/no/libmpi.so.12"})
    done.told("started 2 processes, but mpi4py cannot load an MPI library", "pip install mpich")
    assert done.status == 2


def test_no_mpi4py(mpich: Launcher, here: Path) -> None:
    (here / "mpi4py.py").write_text("raise ImportError('No module named mpi4py')\n")
    done = run(mpich, 2, "--source=digits")
    done.told("started 2 processes, but mpi4py cannot load an MPI library (No module named mpi4py)")
    assert done.status == 2
