"""Which device a rank trains on, and memory from which a GPU is fed."""

from __future__ import annotations

import torch

from fedmpi.errors import UsageError


def pick(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank.

    Args:
        wanted: "auto" (a GPU where there is one), "cpu" or "cuda".
        local_rank: ranks of a node take its GPUs in turn.

    Raises:
        UsageError: "cuda" where PyTorch sees no GPU.
    """
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not gpus:
        build = torch.version.cuda or "none: it is a CPU build"
        raise UsageError(
            f"device = 'cuda', but PyTorch sees no GPU here (its CUDA: {build}): "
            "ask for a node with a GPU, install a CUDA build of torch, or use --device cpu"
        )
    return torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")


def wire_memory(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Vectors of the same layout that MPI can send from and receive into.

    On the CPU these are the vectors themselves. A GPU's are staged through pinned host
    memory, from and to which the copies run at the bus's full rate.
    """
    return [
        v if v.device.type == "cpu" else torch.empty(v.shape, dtype=v.dtype, pin_memory=True)
        for v in vectors
    ]
