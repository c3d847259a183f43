"""Tensors as the compiled kernels take them."""

from __future__ import annotations

from typing import Any

import torch


def flat(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous CPU tensor as a NumPy vector."""
    return tensor.view(-1).numpy()
