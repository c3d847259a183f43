"""The moments that are built from squares."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.table.lift import handles

aten = torch.ops.aten


def _moments(
    x: torch.Tensor, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dims = list(dim) if dim else list(range(x.dim()))
    mean = x.mean(dims, keepdim=True)
    count = prod(x.shape[d] for d in dims)
    free = count - (1 if correction is None else correction)
    if free <= 0:
        raise UsageError(
            f"the variance of {count} elements with correction {correction} is infinite"
        )
    variance = (x - mean).square().sum(dims, keepdim=keepdim) / free
    return variance, mean if keepdim else mean.squeeze(dims)


@handles(aten.var.correction)
def var(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> torch.Tensor:
    """The mean square of the distances from the mean."""
    return _moments(x, dim, correction, keepdim)[0]


@handles(aten.var_mean.correction)
def var_mean(x: torch.Tensor, dim: Any = None, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both."""
    return _moments(x, dim, more.get("correction"), more.get("keepdim", False))
