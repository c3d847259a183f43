"""Which workers a job gets: the launch's ranks, or threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedmpi.config import CommConfig
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.crew import Crew

IN_PROCESS_WORKERS = 7
"""Workers of a run without mpirun: as many as `mpirun -n 8` has."""
MOST_IN_PROCESS_WORKERS = 1024
"""Each is a thread; tens of thousands take minutes to start."""


@contextmanager
def workers_of(comm: CommConfig, path: str, crew: Crew | None, launcher: str) -> Iterator[Crew]:
    """The workers that a job asks for, their messages sealed if it asks for that too."""
    with _idle_workers(comm, path, crew, launcher) as workers:
        if comm.secure_transport:
            from fedmpi.workers.seal import seal

            seal(workers, comm.key_file)
        yield workers


@contextmanager
def _idle_workers(comm: CommConfig, path: str, crew: Crew | None, launcher: str) -> Iterator[Crew]:
    """The launch's ranks, or threads of this process."""
    wanted = comm.workers if comm.workers != "auto" else _number_for(path)
    if crew is None:
        if comm.transport == "mpi":
            raise UsageError(
                "transport = 'mpi', but no launcher started this process: "
                f"run mpirun -n {wanted + 1} python -m fedmpi"
            )
        if wanted > MOST_IN_PROCESS_WORKERS:
            raise UsageError(
                f"workers = {wanted}: expected at most {MOST_IN_PROCESS_WORKERS:,} in one process; "
                f"run with mpirun -n {wanted + 1}"
            )
        from fedmpi.workers.in_process import in_process_crew

        with in_process_crew(wanted) as threads:
            yield threads
        return
    ranks = len(crew.ranks) + 1
    if comm.transport == "threads":
        raise UsageError(
            f"transport = 'threads', but {launcher} started {ranks} ranks: run python -m fedmpi "
            "without a launcher"
        )
    if not crew.ranks:
        what = f" for the {wanted} shards in {path}" if path and comm.workers == "auto" else ""
        raise UsageError(
            f"{launcher} started 1 rank, which is the owner: no worker is left{what}; "
            f"run with mpirun -n {wanted + 1}, or without a launcher"
        )
    if comm.workers not in ("auto", ranks - 1):
        raise UsageError(
            f"workers({comm.workers}) + owner(1) != ranks({ranks}): run with "
            f"mpirun -n {int(comm.workers) + 1}, or leave --workers out"
        )
    yield crew


def _number_for(path: str) -> int:
    """As many workers as there are shards in a folder, if one is named."""
    if not path:
        return IN_PROCESS_WORKERS
    from fedmpi.data.index import read_index

    return len(read_index(path).shards)
