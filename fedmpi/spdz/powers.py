"""Whole powers, and the moments that are built from squares."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.lift import handles

aten = torch.ops.aten


@handles(aten.pow.Tensor_Scalar)
def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """By squaring: a power of n takes about 2 log2(n) products, a negative one a reciprocal."""
    if exponent in (0.5, -0.5):
        return torch.sqrt(x) if exponent > 0 else torch.rsqrt(x)
    if exponent != round(exponent):
        raise UsageError(
            f"{x!r} to the power of {exponent:g} has no secure form: whole exponents and +-0.5 have"
        )
    n = round(exponent)
    if n == 0:
        return torch.ones_like(x) + torch.zeros_like(x)
    if n < 0:
        return torch.reciprocal(power(x, -n))
    found: torch.Tensor | None = None
    while True:
        if n & 1:
            found = x if found is None else found * x
        n >>= 1
        if not n:
            assert found is not None
            return found.clone() if found is x else found
        x = x * x


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
