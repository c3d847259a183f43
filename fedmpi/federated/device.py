"""Which device a rank trains on, and memory from which a GPU is fed."""

from __future__ import annotations

import os
from collections.abc import Sequence

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
    if not gpus:
        return torch.device("cpu")
    _make_deterministic()
    return torch.device("cuda", local_rank % gpus)


def _make_deterministic() -> None:
    """The same kernels on every run, and none of reduced precision, for the same bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def wire_memory(vectors: Sequence[torch.Tensor], takes_gpu_memory: bool) -> list[torch.Tensor]:
    """Vectors of the same layout that messages can be sent from and received into.

    On the CPU, and where MPI is GPU-aware, these are the vectors themselves. Elsewhere a
    GPU's are staged through pinned host memory, to which copies run at the bus's full rate.
    """
    if takes_gpu_memory or all(v.device.type == "cpu" for v in vectors):
        return list(vectors)
    return [torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for v in vectors]
