"""How FedMPI and each peer are launched, and what a run of theirs has to say for itself."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jobs.launched import mpirun
from jobs.peers.federated import environments, watch
from jobs.peers.federated.workloads import BATCH, WORKERS, WORKLOADS

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]

SYSTEMS = ("fedmpi", "plain", *environments.INSTALLS)
RANKS = str(1 + WORKERS)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]


class NotMeasured(Exception):
    """A run failed; the message is the reason."""


class Setting(NamedTuple):
    """Attributes:
    peers: folder of the environments; None: there are none.
    scratch: folder with what all runs share, `data` with plain IDX files and `shards-N` with
        FedMPI's shards of N clients; runs leave what they leave in it.
    rounds: 0: as the workload has.
    threads: of PyTorch in each process.
    limit: seconds for a run.
    """

    peers: Path | None
    scratch: Path
    rounds: int
    threads: int
    limit: float


def run(system: str, workload: str, setting: Setting, name: str) -> dict[str, Any]:
    """Runs a workload on a system.

    Args:
        system: one of `SYSTEMS`.
        workload: its name.
        setting: of all runs.
        name: of this run's files in the scratch folder.

    Returns:
        The system's own `begun` (seconds from the launch to its first round), `rounds` (seconds of
        each, without evaluation), `accuracies` (by round) and `versions`; then what was seen from
        outside: `total`, `peak_mib`, `processes`, `others`.

    Raises:
        NotMeasured: with its last words.
    """
    folder = setting.scratch / name
    folder.mkdir()
    out, log = folder / "stdout", folder / "stderr"
    command = _command(system, workload, setting, folder)
    watched = watch.run(command, _environment(system, setting), folder, out, log, setting.limit)
    if watched.status is None:
        raise NotMeasured(f"not done after {setting.limit:g} s: {last_words(log)}")
    if watched.status:
        raise NotMeasured(f"status {watched.status}: {last_words(log)}")
    if system == "fedmpi":
        line = of_run_folder(folder / "run", watched.launched)
    else:
        line = of_stdout(out.read_text(errors="replace"))
    return line | {
        "total": round(watched.total, 3),
        "peak_mib": round(watched.peak_mib, 1),
        "processes": watched.processes,
        "others": round(watched.others, 2),
    }


def of_stdout(said: str) -> dict[str, Any]:
    """What a peer's script found: the one line of JSON that it prints among others.

    Raises:
        NotMeasured: there is none.
    """
    lines = [line for line in said.splitlines() if line.startswith('{"peer":')]
    if not lines:
        raise NotMeasured("it ended well, but has printed no result")
    found: dict[str, Any] = json.loads(lines[-1])
    return {key: found[key] for key in ("begun", "rounds", "accuracies", "versions")}


def of_run_folder(folder: Path, launched: float) -> dict[str, Any]:
    """The same from the folder that `fedmpi run` leaves: config.toml is written when the first
    round is about to begin.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "begun": (folder / "config.toml").stat().st_mtime - launched,
        "rounds": [round(m["seconds"] - m["phases"]["evaluate"], 6) for m in lines],
        "accuracies": {
            str(m["round"]): m["test_metric"] for m in lines if m["test_metric"] is not None
        },
        "versions": {
            "fedmpi": version("fedmpi"),
            "mpi": _mpi_version(),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def last_words(log: Path) -> str:
    """The last line of a log that names an error, or the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(Error|Exception|error)\b.*:", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def prepare_shards(clients: int, setting: Setting) -> None:
    """FedMPI's shards of the rows that the peers read, made before any clock starts."""
    out = setting.scratch / f"shards-{clients}"
    command = [
        sys.executable, "-m", "fedmpi", "prepare", "mnist", "--root", str(setting.scratch / "data"),
        "--clients", str(clients), "--normalise", "unit", "--workers", str(WORKERS),
        "--out", str(out),
    ]  # fmt: skip
    environment = _environment("fedmpi", setting)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def _command(system: str, workload: str, setting: Setting, folder: Path) -> list[str]:
    if system == "fedmpi":
        return _fedmpi_command(workload, setting, folder)
    options = [
        workload, "--data", str(setting.scratch / "data"),
        "--rounds", str(setting.rounds), "--threads", str(setting.threads),
    ]  # fmt: skip
    script = [str(HERE / f"run_{system}.py"), *options]
    if system == "plain":
        return [sys.executable, *script]
    if setting.peers is None:
        raise NotMeasured("it has no environment: name a folder with --peers")
    python = environments.python_of(setting.peers, system)
    if system == "pfl":
        return [str(python), *TORCHRUN, *script]
    if system in ("appfl", "fedml"):
        return [str(python.with_name("mpiexec")), "-n", RANKS, str(python), *script]
    return [str(python), *script]


def _fedmpi_command(workload: str, setting: Setting, folder: Path) -> list[str]:
    work = WORKLOADS[workload]
    return [
        mpirun(), "-n", RANKS, sys.executable, "-m", "fedmpi", "run",
        "--path", str(setting.scratch / f"shards-{work.clients}"),
        "--out", str(folder), "--name", "run", "--model", work.model,
        "--rounds", str(setting.rounds or work.rounds),
        "--fraction", str(work.cohort / work.clients),
        "--epochs", "1", "--batch-size", str(BATCH), "--lr", str(work.lr),
        "--eval-every", str(work.eval_every), "--threads", str(setting.threads), "--device", "cpu",
    ]  # fmt: skip


def _environment(system: str, setting: Setting) -> dict[str, str]:
    """Without this project's own modules for the peers, whose scripts import each other."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(setting.threads))
    environment["PYTHONPATH"] = str(REPOSITORY if system == "fedmpi" else HERE)
    if system not in ("fedmpi", "plain"):
        # What they keep in a person's home (~/.flwr, ~/.fedml) and in /tmp/ray.
        home = setting.scratch / f"home-{system}"
        home.mkdir(exist_ok=True)
        environment |= {"HOME": str(home), "RAY_TMPDIR": str(setting.scratch)}
        environment |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return environment


def _mpi_version() -> str:
    found = shutil.which(mpirun())
    assert found, mpirun()
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    number = re.search(r"\d+\.\d+(\.\d+)?", said)
    name = "Open MPI" if "Open MPI" in said else "MPICH"
    return f"{name} {number[0]}" if number else name
