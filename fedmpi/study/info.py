"""What the job runs on: the facts of each rank, and a table of them all."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedmpi
from fedmpi.comm.mpi import MpiTransport
from fedmpi.data.files import atomic
from fedmpi.study.units import size
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

PACKAGES = ("torch", "numpy", "h5py", "msgspec", "mpi4py")

Facts = dict[str, Any]


def describe() -> Facts:
    """This process as plain values, which can be sent: host, ids of its cores, versions, GPUs."""
    import torch

    return {
        "host": socket.gethostname(),
        "cores": sorted(os.sched_getaffinity(0)),
        "physical_cores": sorted({_physical(core) for core in os.sched_getaffinity(0)}),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "versions": {
            "fedmpi": fedmpi.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
    }


class Describe(Command, frozen=True):
    """Say what you run on."""


class Described(Reply, frozen=True):
    """What `describe` gives on a rank."""

    facts: dict[str, Any]


@handles(Describe, replies=True)
def answer(worker: Worker, command: Describe, tensors: list[torch.Tensor]) -> Described:
    """Runs on every worker of a launch."""
    return Described(describe())


def show(crew: Crew | None, launcher: str, console: Console, out: str = "") -> None:
    """Asks every rank and prints the table.

    Args:
        crew: the other ranks of an MPI launch; None without a launcher.
        launcher: its name.
        console: where to print.
        out: a JSON file for the facts; empty: none.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [describe()]
    transport = crew.endpoint.transport if crew else None
    mpi = {
        "ranks": 1,
        "launcher": launcher,
        "library": "",
        "gpu_aware": False,
        "survives": False,
    }
    if crew and isinstance(transport, MpiTransport):
        rows += [reply.facts for reply in crew.ask(lambda rank: Describe(), Described)]
        mpi |= {
            "ranks": transport.size,
            "library": transport.library(),
            "gpu_aware": transport.gpu_aware(),
            "survives": transport.survives,
        }
    table(rows, mpi, console)
    if out:
        with atomic(Path(out)) as temporary:
            temporary.write_text(json.dumps({"mpi": mpi, "ranks": rows}, indent=1) + "\n")


def table(rows: Sequence[Facts], mpi: Mapping[str, Any], console: Console) -> None:
    """Prints MPI, nodes and versions, and points out what differs between ranks.

    Args:
        rows: what `describe` gave on each rank, rank 0 first.
        mpi: facts of the transport: library, ranks, launcher, gpu_aware, survives.
        console: where to print.
    """
    console.print(_job_table(rows, mpi))
    console.print(_nodes_table(rows))
    for line in _differences(rows) + _crowded_nodes(rows):
        console.print(f"[yellow]note:[/] {line}", soft_wrap=True, highlight=False)


def _job_table(rows: Sequence[Facts], mpi: Mapping[str, Any]) -> Table:
    from rich.table import Table

    job = Table(box=None, show_header=False)
    facts = {
        "MPI": mpi.get("library") or "none (threads in one process)",
        "launcher": mpi.get("launcher") or "none",
        "ranks": str(mpi.get("ranks", len(rows))),
        "GPU-aware MPI": "yes" if mpi.get("gpu_aware") else "no",
        "survives lost workers": "yes (ULFM)" if mpi.get("survives") else "no",
    }
    for name, value in (facts | rows[0]["versions"]).items():
        job.add_row(name, value)
    return job


def _nodes_table(rows: Sequence[Facts]) -> Table:
    from rich import box
    from rich.table import Table

    nodes = Table(box=box.SIMPLE_HEAD)
    for name in ("node", "ranks", "cores per rank", "threads per rank", "memory", "GPUs"):
        nodes.add_column(name, justify="left" if name in ("node", "ranks", "GPUs") else "right")
    for host, ranks in _by_value([row["host"] for row in rows]).items():
        here = [rows[rank] for rank in ranks]
        gpus = _by_value(max((row["cuda"] for row in here), key=len))
        nodes.add_row(
            host,
            _ranges(ranks),
            _span([len(row["cores"]) for row in here]),
            _span([row["threads"] for row in here]),
            size(here[0]["memory"]),
            ", ".join(f"{len(k)} x {name}" for name, k in gpus.items()) or "none",
        )
    return nodes


def _differences(rows: Sequence[Facts]) -> list[str]:
    """Packages whose versions differ: results need not be the same bits then."""
    lines = []
    for package in rows[0]["versions"]:
        found = _by_value([row["versions"].get(package, "none") for row in rows])
        if len(found) > 1:
            versions = ", ".join(f"{v} on ranks {_ranges(ranks)}" for v, ranks in found.items())
            lines.append(f"{package} differs: {versions}")
    return lines


def _crowded_nodes(rows: Sequence[Facts]) -> list[str]:
    """Nodes with more threads than cores: timings there say little."""
    lines = []
    for host, ranks in _by_value([row["host"] for row in rows]).items():
        cores = set().union(*(rows[rank]["cores"] for rank in ranks))
        threads = sum(rows[rank]["threads"] for rank in ranks)
        if threads > len(cores):
            lines.append(
                f"{host} has {len(cores)} cores for {threads} threads "
                f"({len(ranks)} ranks): timings there show no speed-up"
            )
    return lines


def _physical(core: int) -> int:
    """The physical core behind one that the kernel counts, named by the first that it has."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return int(re.split("[,-]", path.read_text())[0])
    except (OSError, ValueError):  # a container without /sys, or not Linux
        return core


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _by_value(values: Sequence[str]) -> dict[str, list[int]]:
    """Each distinct value with the places where it stands."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _ranges(ranks: Sequence[int]) -> str:
    """Rising ranks in short: `0-3, 7`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
