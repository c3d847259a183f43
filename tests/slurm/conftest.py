"""A SLURM of two simulated nodes, and a folder from which a person submits jobs."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch import ROOT, launchers, run_single
from tests.slurm.cluster import Cluster, Unavailable
from tests.test_same_bits import digest

JOB = ("--path", "data/digits", "--clients", "14", "--rounds", "2", "--device", "cpu")
NODES = ("--nodes=2", "--ntasks-per-node=2")
"""All cores of the simulated nodes: three workers and the owner."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Skips the test where SLURM cannot be started, and says why."""
    # Not pytest's folder: its path would be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="fedmpi-slurm-"))
    try:
        with Cluster.start(folder) as running:
            yield running
    except Unavailable as error:
        pytest.skip(f"no SLURM: {error}")
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Site:
    """A clone of FedMPI on the login node, as far as a job sees it."""

    path: Path
    cluster: Cluster

    def job(
        self,
        script: str,
        *arguments: str,
        options: tuple[str, ...] = NODES,
        mpi: str = "mpich",
        launcher: str = "pmi2",
    ) -> str:
        """Submits a script of jobs/; returns the job's number."""
        env = {"PYTHONPATH": str(ROOT), "FEDMPI_LAUNCHER": launcher, "MPI": mpi}
        env |= launchers()[mpi].variables
        return self.cluster.submit(
            f"jobs/{script}.sbatch", *arguments, cwd=self.path, options=options, env=env
        )

    def wait_for(self, ready: Callable[[], bool], job: str, timeout: float = 60) -> None:
        """Waits until something that a job does is to be seen."""
        limit = time.monotonic() + timeout
        while not ready():
            assert time.monotonic() < limit, self.told(job)
            time.sleep(0.05)

    def digest(self, run: str) -> str:
        """Of the model that a run left."""
        return digest(self.path / "runs" / run / "model.h5")

    def told(self, job: str) -> str:
        """What a job printed."""
        return "".join(file.read_text() for file in self.path.glob(f"*-{job}*.out"))


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With `jobs`, an environment to activate, and shards for three workers and for one."""
    path = tmp_path_factory.mktemp("site")
    (path / "jobs").symlink_to(ROOT / "jobs")
    (path / ".venv" / "bin").mkdir(parents=True)
    folders = {name: Path(found.mpirun).parent for name, found in launchers().items()}
    (path / ".venv" / "bin" / "activate").write_text(
        f"declare -A mpirun=({' '.join(f'[{n}]={str(p)!r}' for n, p in folders.items())})\n"
        f'export PATH="${{mpirun[${{MPI:-mpich}}]}}:{Path(sys.executable).parent}:$PATH"\n'
    )
    for workers, out in ((3, "data/digits"), (1, "data/one")):
        prepare = ["-m", "fedmpi", "prepare", "digits", "--clients", "14"]
        prepare += ["--workers", str(workers), "--out", out]
        done = run_single(prepare, timeout=60, cwd=path)
        assert done.returncode == 0, done.stderr
    return Site(path, cluster)


@pytest.fixture(scope="module")
def one_process(site: Site) -> str:
    """Digest of the model of `JOB` on one process with one worker."""
    job = ["data/one" if word == "data/digits" else word for word in JOB]
    command = ["-m", "fedmpi", "run", *job, "--workers", "1", "--name", "one"]
    done = run_single(command, timeout=60, cwd=site.path)
    assert done.returncode == 0, done.stderr
    return site.digest("one")
