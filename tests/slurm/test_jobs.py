"""The scripts of jobs/ through a real SLURM on two simulated nodes.

All in one file: pytest-xdist gives a file to one process, which starts SLURM once.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi.config import from_toml
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.scaling.collect import collect
from fedmpi.study.scaling.study import StudyFolder
from tests.launch import launchers, run_single
from tests.slurm.conftest import JOB, NODES, Site

pytestmark = [pytest.mark.slurm, pytest.mark.launch]

WAYS = [("mpich", "pmi2"), ("mpich", "mpirun"), ("openmpi", "pmix"), ("openmpi", "mpirun")]


@pytest.mark.parametrize(("mpi", "launcher"), WAYS)
def test_fedavg_has_the_bits_of_one_process(
    site: Site, one_process: str, mpi: str, launcher: str
) -> None:
    if mpi not in launchers():
        pytest.skip(f"{mpi} is not installed")
    if launcher == "pmix" and not site.cluster.has_pmix():
        pytest.skip("this SLURM finds no libpmix.so: install libpmix-dev")
    job = site.job("fedavg", *JOB, mpi=mpi, launcher=launcher)
    ended = site.cluster.wait(job, timeout=120)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), site.told(job)
    assert "NodeList=node[1-2]" in site.cluster.run("scontrol", "show", "job", job)
    run = f"fedavg-{job}"
    assert len(read_metrics(site.path / "runs" / run / "metrics.jsonl")) == 2
    assert site.digest(run) == one_process


def test_a_mistake_ends_the_job(site: Site) -> None:
    """As soon as the owner sees it, with its status and one sentence."""
    job = site.job("fedavg", *JOB, "--path", "data/one")
    assert site.cluster.wait(job, timeout=60).exit_code == 2
    assert "1 shard in data/one but 3 workers" in site.told(job)


def test_secure_has_the_bits_of_the_clear(site: Site) -> None:
    job = site.job("secure", *JOB)
    assert site.cluster.wait(job, timeout=120).exit_code == 0, site.told(job)
    clear = ["data/one" if word == "data/digits" else word for word in JOB]
    command = ["-m", "fedmpi", "run", *clear, "--workers", "1", "--name", "clear"]
    # The rounds of jobs/secure-aggregation.toml, without its [federated.secure].
    command += ["--fraction", "0.3", "--epochs", "5", "--lr", "0.1", "--dropout", "0.1"]
    done = run_single(command, timeout=60, cwd=site.path)
    assert done.returncode == 0, done.stderr
    assert site.digest(f"secure-{job}") == site.digest("clear")


def test_array_has_a_seed_for_each_task(site: Site) -> None:
    options = ("--array=3-4", "--nodes=1", "--ntasks-per-node=2")
    job = site.job("array", *JOB, "--path", "data/one", options=options)
    ended = site.cluster.wait(job, timeout=120)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), site.told(job)
    runs = [f"seeds-{job}-{seed}" for seed in (3, 4)]
    seeds = [from_toml(site.path / "runs" / run / "config.toml").seed for run in runs]
    assert seeds == [3, 4]
    assert len({site.digest(run) for run in runs}) == 2


def test_gpus_are_asked_for(site: Site, one_process: str) -> None:
    """The simulated nodes have GPUs in name only: the job trains on the CPU."""
    options = (*NODES, "--gpus-per-node=2", "--cpus-per-task=1")
    job = site.job("gpu", *JOB, options=options)
    assert site.cluster.wait(job, timeout=120).exit_code == 0, site.told(job)
    told = site.cluster.run("scontrol", "show", "job", job)
    assert re.search("TresPerNode=gres[:/]gpu:2", told), told
    assert site.digest(f"gpu-{job}") == one_process


def test_requeue_goes_on_with_the_same_bits(site: Site) -> None:
    """The signal that SLURM sends before the time limit: checkpoint, status 75, queue, resume."""
    rounds = ("--rounds", "150")
    job = site.job("requeue", *JOB, *rounds)
    run = site.path / "runs" / f"long-{job}"
    site.wait_for(lambda: (run / "metrics.jsonl").exists(), job)
    site.cluster.run("scancel", "--batch", "--signal=USR1", job)
    ended = site.cluster.wait(job, timeout=180)
    assert (ended.state, ended.exit_code, ended.restarts) == ("COMPLETED", 0, 1), site.told(job)
    assert [m.round for m in read_metrics(run / "metrics.jsonl")] == list(range(1, 151))

    whole = ["data/one" if word == "data/digits" else word for word in JOB]
    command = ["-m", "fedmpi", "run", *whole, *rounds, "--workers", "1", "--name", "whole"]
    done = run_single(command, timeout=120, cwd=site.path)
    assert done.returncode == 0, done.stderr
    assert site.digest(run.name) == site.digest("whole")


def test_requeue_at_a_real_time_limit(site: Site) -> None:
    """A job without an end, with a limit of a minute: SLURM itself sends the signal."""
    options = (*NODES, "--time=1", "--signal=B:USR1@20")
    job = site.job("requeue", *JOB, "--rounds", "1000000", options=options)
    run = site.path / "runs" / f"long-{job}"
    checkpoints = run / "checkpoints"

    def goes_on() -> bool:
        """In its second minute, and past what it had in the first."""
        if site.cluster.restarts(job) != 1 or not any(checkpoints.glob("round-??????.h5")):
            return False
        return read_metrics(run / "metrics.jsonl")[-1].round > newest_round(checkpoints) + 5

    site.wait_for(goes_on, job, timeout=300)
    site.cluster.run("scancel", job)
    assert site.cluster.wait(job, timeout=60).state == "CANCELLED"
    played = [m.round for m in read_metrics(run / "metrics.jsonl")]
    assert played == list(range(1, len(played) + 1))

    # What is left is what was written at the limit: it has the bits of a run that met none.
    rounds = ("--rounds", str(newest_round(checkpoints) + 3))
    one = ["--path", "data/one", "--workers", "1", *rounds]
    whole = ["data/one" if word == "data/digits" else word for word in JOB]
    for command in (
        ["run", "--resume", f"runs/{run.name}", *one],
        ["run", *whole, *rounds, "--workers", "1", "--name", "unlimited"],
    ):
        done = run_single(["-m", "fedmpi", *command], timeout=300, cwd=site.path)
        assert done.returncode == 0, done.stderr
    assert site.digest(run.name) == site.digest("unlimited")


def newest_round(checkpoints: Path) -> int:
    """The round after which the newest checkpoint was written."""
    return max(int(path.stem[-6:]) for path in checkpoints.glob("round-??????.h5"))


def test_scaling_study(site: Site) -> None:
    """Written, submitted, collected and drawn; every rank is bound to a core of its own."""
    (site.path / "small.toml").write_text(
        '[data]\nsource = "digits"\nclients = 6\n[federated]\nrounds = 3\nepochs = 1\n'
    )

    def scaling(*arguments: str) -> str:
        command = [sys.executable, "-m", "jobs.scaling", *arguments]
        return site.cluster.run(*command, cwd=site.path, timeout=60)

    shape = ["--workers", "1", "3", "--repeats", "1", "--ranks-per-node", "2", "--minutes", "5"]
    scaling("write", "study", "--config", "small.toml", "--kind", "weak", *shape)
    jobs = re.findall(r"batch job (\d+)", scaling("submit", "study"))
    assert len(jobs) == 2
    for job in jobs:
        assert site.cluster.wait(job, timeout=120).exit_code == 0
    folder = StudyFolder(site.path / "study")
    results = collect(folder)
    assert [point.failures for point in results.points] == [(), ()]
    assert [len(point.seconds) for point in results.points] == [1, 1]
    ranks = json.loads(folder.machine(3).read_text())["ranks"]
    assert [len(rank["cores"]) for rank in ranks] == [1] * 4
    assert "none of" not in scaling("collect", "study")
    scaling("plot", "study")
    assert (folder.path / "scaling.png").exists()


def test_no_slurm_of_ours_outlives_its_cluster() -> None:
    """A second cluster beside the first comes up and goes, and leaves no process."""
    code = (
        "import tempfile, pathlib, shutil; from tests.slurm.cluster import Cluster\n"
        "folder = pathlib.Path(tempfile.mkdtemp(prefix='fedmpi-slurm-'))\n"
        "with Cluster.start(folder) as cluster: cluster.run('srun', 'true')\n"
        "shutil.rmtree(folder); print(folder)"
    )
    if not shutil.which("sbatch"):
        pytest.skip("no SLURM")
    done = run_single(["-c", code], timeout=60)
    assert done.returncode == 0, done.stderr
    left = subprocess.run(["pgrep", "--full", done.stdout.strip()], capture_output=True, text=True)
    assert left.stdout == ""
