"""What a launcher's environment says, and worlds that contradict it."""

from __future__ import annotations

import pytest

from fedmpi.comm.launcher import Launch, check_world, launched
from fedmpi.errors import UsageError

ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_PROCID": "0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, Launch("mpirun of MPICH", 4, 3)),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, Launch("mpirun of MPICH", 1, 0)),
        (
            {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "0"},
            Launch("mpirun of Open MPI", 8, 0),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5", "SLURM_STEP_ID": "0"},
            Launch("srun", 16, 5),
        ),
        ({"JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}, Launch("jsrun", 2, 1)),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, Launch("flux run", 2, 1)),
        # srun --mpi=pmi2 sets both
        (
            {"PMI_SIZE": "4", "PMI_RANK": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1",
             "SLURM_STEP_ID": "2"},
            Launch("srun", 4, 1),
        ),
        # a shell inside an allocation, and mpirun started from it
        (ALLOCATION, None),
        (
            {**ALLOCATION, "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"},
            Launch("mpirun of Open MPI", 3, 2),
        ),
        # incomplete or not numbers
        ({"PMI_SIZE": "4"}, None),
        ({"PMI_SIZE": "four", "PMI_RANK": "0"}, None),
        ({"PMI_SIZE": "", "PMI_RANK": ""}, None),
        ({"OMPI_COMM_WORLD_SIZE": "-1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "4", "PMI_RANK": "3"},
            Launch("mpirun of MPICH", 4, 3),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_launched(environment: dict[str, str], expected: Launch | None) -> None:
    assert launched(environment) == expected


def test_a_world_as_large_as_the_launch_is_accepted() -> None:
    check_world(Launch("mpirun of MPICH", 4, 0), 4, "MPICH 5.0")
    check_world(None, 1, "MPICH 5.0")


@pytest.mark.parametrize("world_size", [1, 8])
def test_a_library_of_another_mpi_is_refused_once(world_size: int) -> None:
    library = "Open MPI v5.0.8, package: Open MPI\nsecond line"
    with pytest.raises(UsageError) as first:
        check_world(Launch("mpirun of MPICH", 4, 0), world_size, library)
    assert str(first.value).startswith(
        "mpirun of MPICH started 4 processes, but the MPI library of this Python (Open MPI v5.0.8) "
        f"sees a world of {world_size}: "
    )
    with pytest.raises(UsageError) as other:
        check_world(Launch("mpirun of MPICH", 4, 2), world_size, library)
    assert str(other.value) == ""
