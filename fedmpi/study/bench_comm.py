"""`fedmpi bench comm`: FedMPI's messages beside those of plain MPI, as a table and a PNG."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.comm.mpi import MpiTransport
from fedmpi.data.files import atomic
from fedmpi.errors import UsageError
from fedmpi.study.bench_ranks import PARTNER, How, Rest, Rested, Took, Transfer, What, transfer
from fedmpi.study.units import size
from fedmpi.workers.crew import Crew

if TYPE_CHECKING:
    from rich.console import Console

SMALLEST, FACTOR = 8, 8
"""Messages of 8 B, 64 B, 512 B, ..."""
SERIES_SECONDS = 0.2
"""That a series of transfers may take: slow ones are repeated less often."""
MOST_REPEATS, LEAST_REPEATS, WARM, TURNS = 300, 9, 2, 3
SLOW_SECONDS = 0.5
"""A transfer that takes longer is not repeated: MPICH's ranks do not give way to each other inside
`Bcast`, which takes seconds where there are more of them than cores."""
REST_SECONDS = 2.0

_NAMES: dict[What, dict[How, str]] = {
    "exchange": {"fedmpi": "frames", "mpi": "Send, Recv"},
    "broadcast": {"fedmpi": "tree", "star": "star", "mpi": "Bcast"},
    "sum": {"fedmpi": "tree", "star": "star", "mpi": "Reduce"},
}


@dataclass(frozen=True)
class Line:
    """One way to move so many bytes.

    Attributes:
        what, how, nbytes: the transfer.
        seconds: median; of an exchange, one way; of the others, until the last rank is done.
        least: the quickest.
        repeats: how many there were.
    """

    what: What
    how: How
    nbytes: int
    seconds: float
    least: float
    repeats: int


def sizes(most: int) -> list[int]:
    """8 B times powers of 8, up to `most` bytes, which ends the list."""
    found = []
    nbytes = SMALLEST
    while nbytes < most:
        found.append(nbytes)
        nbytes *= FACTOR
    return [*found, most]


def measure(crew: Crew, most: int, chunk_bytes: int) -> list[Line]:
    """All transfers of all sizes; the ways of one transfer take turns with each other.

    Args:
        crew: of an MPI launch, at least one worker.
        most: bytes of the longest message.
        chunk_bytes: size of the pieces of a broadcast and a sum.
    """
    lines = []
    for what in _NAMES:
        ways = list(_NAMES[what])
        for nbytes in sizes(most):
            once = {how: _one(crew, Transfer(what, how, nbytes, 1, 1, chunk_bytes)) for how in ways}
            found: dict[How, list[float]] = {how: [] for how in ways}
            quick = [how for how in ways if once[how][0] <= SLOW_SECONDS]
            for how in set(ways) - set(quick):
                found[how] = once[how]
            for _ in range(TURNS):
                for how in quick:
                    fit = int(SERIES_SECONDS / once[how][0])
                    repeats = -(-min(MOST_REPEATS, max(LEAST_REPEATS, fit)) // TURNS)
                    found[how] += _one(
                        crew, Transfer(what, how, nbytes, repeats, WARM, chunk_bytes)
                    )
            lines += [
                Line(what, how, nbytes, statistics.median(s), min(s), len(s))
                for how, s in found.items()
            ]
    return lines


def _one(crew: Crew, asked: Transfer) -> list[float]:
    ranks = [PARTNER] if asked.what == "exchange" else list(crew.ranks)
    for rank in ranks:
        crew.tell(rank, asked)
    mine = transfer(crew.endpoint, asked)
    others = [took.seconds for took in crew.hear(ranks, Took)]
    if asked.what == "exchange":
        return [seconds / 2 for seconds in mine]
    return [max(at_once) for at_once in zip(mine, *others, strict=True)]


def idle_share(crew: Crew) -> float:
    """Share of the node's cores that the workers use while nobody asks anything of them."""
    transport = crew.endpoint.transport
    assert isinstance(transport, MpiTransport)
    before = [rested.cpu for rested in crew.ask(lambda rank: Rest(), Rested)]
    begun = time.perf_counter()
    time.sleep(REST_SECONDS)
    after = [rested.cpu for rested in crew.ask(lambda rank: Rest(), Rested)]
    used = sum(after) - sum(before)
    return used / (time.perf_counter() - begun) / transport.cores_on_node


def bench_comm(crew: Crew | None, console: Console, most: int, chunk: int, out: str) -> Path:
    """Measures, prints the tables, and writes comm-N.json and comm-N.png for N ranks.

    Args:
        crew: the other ranks of an MPI launch.
        console: where to print.
        most: bytes of the longest message.
        chunk: bytes of the pieces of a broadcast and a sum.
        out: folder, made if need be.

    Returns:
        The PNG.

    Raises:
        UsageError: there is no launch of at least two ranks.
    """
    transport = crew.endpoint.transport if crew else None
    if crew is None or not isinstance(transport, MpiTransport) or transport.size < 2:
        raise UsageError(
            "bench comm compares messages with plain MPI's: run mpirun -n 2 python -m fedmpi bench "
            "comm, with 2 ranks or more"
        )
    title = (
        f"{transport.library()}, {transport.size} ranks, {transport.cores_on_node} cores on the "
        "owner's node"
    )
    console.print(title, highlight=False, soft_wrap=True)
    lines = measure(crew, most, chunk)
    _print(lines, console)
    idle = idle_share(crew)
    console.print(
        f"while they wait, workers use {100 * idle:.1f} % of the cores",
        highlight=False,
        soft_wrap=True,
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "library": transport.library(),
        "ranks": transport.size,
        "cores": transport.cores_on_node,
        "chunk_bytes": chunk,
        "idle_share": idle,
        "lines": [asdict(line) for line in lines],
    }
    with atomic(folder / f"comm-{transport.size}.json") as temporary:
        Path(temporary).write_text(json.dumps(record, indent=1))
    plot = folder / f"comm-{transport.size}.png"
    from fedmpi.study.plot_comm import draw

    draw(lines, _NAMES, plot, title)
    return plot


def _print(lines: list[Line], console: Console) -> None:
    from rich import box
    from rich.table import Table

    titles = {
        "exchange": "rank 0 to rank 1, one way; ratio: frames to Send and Recv",
        "broadcast": "broadcast from rank 0, until the last rank has it; ratio: tree to Bcast",
        "sum": "sum of int64 at rank 0; ratio: tree to Reduce",
    }
    for what, names in _NAMES.items():
        table = Table(box=box.SIMPLE_HEAD, title=titles[what], title_justify="left")
        rated = {how: how != "star" for how in names}  # a terminal is 80 columns wide
        headers = [h for how, name in names.items() for h in (name, "per s")[: 1 + rated[how]]]
        for header in ("bytes", *headers, "ratio"):
            table.add_column(header, justify="right", no_wrap=True)
        for nbytes in sorted({line.nbytes for line in lines if line.what == what}):
            of = {k.how: k for k in lines if k.what == what and k.nbytes == nbytes}
            cells = [size(nbytes)]
            for how in names:
                cells.append(_microseconds(of[how].seconds))
                if rated[how]:
                    cells.append(size(nbytes / of[how].seconds))
            ratio = of["fedmpi"].seconds / of["mpi"].seconds
            table.add_row(*cells, f"{ratio:.2f}")
        console.print(table)


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:,.2f} ms"
