"""Ranks under mpirun, and what a run of theirs has recorded: what the benchmarks have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def mpirun() -> str:
    """The launcher that lies beside this Python, or the one on the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else "mpirun"


def launch(ranks: int, *arguments: str, quiet: bool = True) -> None:
    """Runs `mpirun -n RANKS python ARGUMENTS`, one thread a rank.

    Args:
        ranks: how many.
        arguments: of Python.
        quiet: leave out what the ranks say on stdout.

    Raises:
        CalledProcessError: the job has failed.
    """
    subprocess.run(
        [mpirun(), "-n", str(ranks), sys.executable, *arguments],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL if quiet else None,
    )


def launch_fedmpi(ranks: int, *arguments: str, quiet: bool = True) -> None:
    """Runs a command of FedMPI on so many ranks, see `launch`."""
    launch(ranks, "-m", "fedmpi", *arguments, quiet=quiet)


def records(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run, from the metrics.jsonl of its folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def warm_records(folder: Path) -> list[dict[str, Any]]:
    """The same without the first round, in which memory is still cold."""
    return records(folder)[1:]
