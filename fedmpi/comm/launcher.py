"""What started this process: mpirun, srun or a person; found out before MPI is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedmpi.errors import UsageError

# (launcher, variable with the number of processes, variable with this process's rank).
# The first row that is complete wins: a launcher inside a batch job is nearer than the job.
_VARIABLES = (
    ("mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun of MPICH", "PMI_SIZE", "PMI_RANK"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("flux run", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("the launcher", "FEDMPI_SIZE", "FEDMPI_RANK"),
)


@dataclass(frozen=True)
class Launch:
    """A launcher's own word on how many processes it started, and which this one is."""

    launcher: str
    size: int
    rank: int


def launched(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that this process is part of; None when a person started it alone.

    A step of one task counts for mpirun only: a shell inside a SLURM allocation is a
    step of one task too, and `python -m fedmpi` there means one process with threads.
    """
    for launcher, size_name, rank_name in _VARIABLES:
        size, rank = environ.get(size_name, ""), environ.get(rank_name, "")
        if (
            size_name == "PMI_SIZE"
            and "SLURM_STEP_ID" in environ
            and "HYDI_CONTROL_FD" not in environ
        ):
            launcher = "srun"
        if size.isdigit() and rank.isdigit() and (int(size) > 1 or "mpirun" in launcher):
            return Launch(launcher, int(size), int(rank))
    return None


def check_library(launch: Launch | None, library: str) -> None:
    """Refuses a library that would end the process when it starts, with an error of its own.

    MPICH and its descendants do so under the mpirun of Open MPI, whose way of starting
    processes (PMIx) they do not know.

    Raises:
        UsageError: as `check_world`.
    """
    if launch and "Open MPI" in launch.launcher and re.match("CRAY MPICH|MPICH|MVAPICH", library):
        raise _two_mpis(launch, library, "cannot be started by it")


def check_world(launch: Launch | None, world_size: int, library: str) -> None:
    """Refuses a world that is not the one that the launcher started.

    The launcher of one MPI with the library of another gives N worlds of one rank each,
    which would run the same job N times over the same files.

    Raises:
        UsageError: with both names; on the launcher's rank 0 only it has a text, so that
            the sentence is printed once.
    """
    if launch and launch.size != world_size:
        raise _two_mpis(launch, library, f"sees a world of {world_size}")


def _two_mpis(launch: Launch, library: str, found: str) -> UsageError:
    name = " ".join(library.split("\n")[0].split(",")[0].split())
    return UsageError(
        f"{launch.launcher} started {launch.size} processes, but the MPI library of this Python "
        f"({name}) {found}: launcher and library belong to different MPIs; "
        "use the mpirun that lies beside this Python, or install the launcher's own mpi4py"
        if launch.rank == 0
        else ""
    )
