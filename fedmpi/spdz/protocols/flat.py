"""Tensors and numbers as the compiled kernels take them: unsigned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_UNSIGNED: dict[torch.dtype, Any] = {
    torch.int8: np.uint8,
    torch.int16: np.uint16,
    torch.int64: np.uint64,
}


def flat(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous CPU tensor as a NumPy vector of unsigned words."""
    return tensor.view(-1).numpy().view(_UNSIGNED[tensor.dtype])


def all_bits(flag: bool) -> Any:
    """All bits of a word set, or none."""
    return np.uint64(2**64 - 1) if flag else np.uint64(0)
