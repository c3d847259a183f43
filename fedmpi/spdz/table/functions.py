"""Elementary functions that are made of others: powers, logarithms, waves, sums of squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.protocols.series import SERIES, Series, evaluate
from fedmpi.spdz.table.exponentials import power_of
from fedmpi.spdz.table.lift import handles, lift, real, secret_of
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

SERIES["atan"] = Series(torch.atan, -1.01, 1.01, 4.0, 8)


# ---- powers ------------------------------------------------------------------------------------


def _whole_power(x: torch.Tensor, n: int) -> torch.Tensor:
    """x^n by squares."""
    found: torch.Tensor | None = None
    while True:
        if n & 1:
            found = x if found is None else found * x
        n >>= 1
        if not n:
            assert found is not None
            return found.clone() if found is x else found
        x = x * x


@handles(aten.pow.Tensor_Scalar)
def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """By squares and a reciprocal if n is whole, by a root if it is a half, else exp(n log x)."""
    if exponent == 0:
        return torch.ones_like(x) + torch.zeros_like(x)
    if exponent == round(exponent):
        x = torch.reciprocal(x) if exponent < 0 else x
        return _whole_power(x, abs(int(exponent)))
    if exponent == 0.5:
        return torch.sqrt(x)
    if exponent == -0.5:
        return torch.rsqrt(x)
    return torch.exp(exponent * torch.log(x))


@handles(aten.pow.Scalar)
def power_of_number(base: float, x: torch.Tensor) -> torch.Tensor:
    """base^x for a public base: as exp(x log base).

    Raises:
        UsageError: the base is not positive.
    """
    if base <= 0:
        raise UsageError(f"{base} to the power of {x!r}: the base must be greater than 0")
    return torch.ones_like(x) if base == 1 else power_of(math.log2(base), x)


@handles(aten.pow.Tensor_Tensor)
def power_of_tensors(base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """exp(x log base), base > 0."""
    return torch.exp(x * torch.log(base))


@handles(aten.exp2.default)
def exp2(x: torch.Tensor) -> torch.Tensor:
    """2^x for x < 20: error below 2 units and 1e-5 of the result."""
    return power_of(1.0, x)


@handles(aten.expm1.default)
def expm1(x: torch.Tensor) -> torch.Tensor:
    """e^x - 1, as exp."""
    return torch.exp(x) - 1


@handles(aten.sinh.default)
def sinh(x: torch.Tensor) -> torch.Tensor:
    """(e^x - e^-x) / 2 for |x| < 13.8, as exp."""
    up, down = torch.exp(torch.stack([x, -x])).unbind()
    return (up - down) / 2


@handles(aten.cosh.default)
def cosh(x: torch.Tensor) -> torch.Tensor:
    """(e^x + e^-x) / 2 for |x| < 13.8, as exp."""
    return torch.exp(torch.stack([x, -x])).sum(0) / 2


@handles(aten.log2.default)
def log2(x: torch.Tensor) -> torch.Tensor:
    """As log."""
    return torch.log(x) / math.log(2)


@handles(aten.log10.default)
def log10(x: torch.Tensor) -> torch.Tensor:
    """As log."""
    return torch.log(x) / math.log(10)


@handles(aten.log1p.default)
def log1p(x: torch.Tensor) -> torch.Tensor:
    """log(1 + x), x > -1, as log."""
    return torch.log(x + 1)


@handles(aten.xlogy.Tensor, aten.xlogy.Scalar_Other, aten.xlogy.Scalar_Self)
def xlogy(x: Any, y: Any) -> torch.Tensor:
    """x log y: 0 where both are 0."""
    if isinstance(y, SharedTensor):
        return x * torch.log(torch.clamp(y, min=2.0**-16))
    return x * torch.log(torch.as_tensor(y).clamp(min=2.0**-16))


# ---- waves -------------------------------------------------------------------------------------


def _evaluated(name: str, x: torch.Tensor) -> torch.Tensor:
    secret, dtype = real(x)
    return lift(evaluate(name, secret, secret.bits), dtype)


@handles(aten.sin.default)
def sin(x: torch.Tensor) -> torch.Tensor:
    """Of any angle: error below 2 units."""
    return _evaluated("sin", x)


@handles(aten.cos.default)
def cos(x: torch.Tensor) -> torch.Tensor:
    """Of any angle: error below 2 units."""
    return _evaluated("cos", x)


@handles(aten.tan.default)
def tan(x: torch.Tensor) -> torch.Tensor:
    """sin x / cos x, with 24 fractional bits in between."""
    secret, dtype = real(x)
    up, down = (lift(evaluate(name, secret, 24), dtype) for name in ("sin", "cos"))
    found = secret_of(up * torch.reciprocal(down))
    return lift(found.cut(found.bits - secret.bits), dtype)


@handles(aten.atan.default)
def atan(x: torch.Tensor) -> torch.Tensor:
    """Of any x: that of 1 / x beyond 1. Error below 4 units."""
    low, high = (torch.stack([x + 1, 1 - x]) < 0).unbind()
    outside = low.to(torch.int64) + high
    inner = x + outside * (torch.reciprocal(x) - x)
    angle = _evaluated("atan", inner)
    side = (high.to(torch.int64) - low) * (math.pi / 2)
    return angle - 2 * (outside * angle) + side


# ---- sums of squares ---------------------------------------------------------------------------


def _dims(x: torch.Tensor, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None or dim == []:
        return list(range(x.dim()))
    return [dim] if isinstance(dim, int) else list(dim)


def deviation(x: torch.Tensor, dims: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean, and what x differs from it; the dimensions stay, with one element each."""
    mean = x.mean(list(dims), keepdim=True)
    return mean, x - mean


@handles(aten.std.correction)
def std(x: torch.Tensor, dim: Any = None, **kwargs: Any) -> torch.Tensor:
    """The root of the variance."""
    return torch.sqrt(torch.var(x, dim, **kwargs))


@handles(aten.std_mean.correction)
def std_mean(x: torch.Tensor, dim: Any = None, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The root of the variance, and the mean."""
    variance, mean = torch.var_mean(x, dim, **kwargs)
    return torch.sqrt(variance), mean


@handles(aten.linalg_vector_norm.default)
def vector_norm(
    x: torch.Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> torch.Tensor:
    """Norms of order 1, 2 (|x| < 2^15) and infinity, and others through powers.

    Raises:
        UsageError: another order that is not positive.
    """
    dims = _dims(x, dim)
    if ord == 2:
        return torch.sqrt((x * x).sum(dims, keepdim))
    if ord == 1:
        return torch.abs(x).sum(dims, keepdim)
    if ord == math.inf:
        return torch.amax(torch.abs(x), dims, keepdim)
    if not 0 < ord < math.inf:
        raise UsageError(f"a norm of order {ord} of {x!r}: expected a number greater than 0")
    return (torch.abs(x) ** ord).sum(dims, keepdim) ** (1 / ord)
