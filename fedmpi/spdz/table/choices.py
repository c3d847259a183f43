"""Comparisons of secrets, and what is chosen by them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload

from fedmpi.errors import UsageError
from fedmpi.spdz.table.lift import handles, lift, secret_of
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

BOOL = torch.bool


def _negative(x: torch.Tensor) -> torch.Tensor:
    return lift(secret_of(x).sign(), BOOL)


def _not(bit: torch.Tensor) -> torch.Tensor:
    return lift(secret_of(bit).flipped(), BOOL)


def _less(a: Any, b: Any) -> torch.Tensor:
    return _negative(a if not isinstance(b, torch.Tensor) and b == 0 else _difference(a, b))


def _difference(a: Any, b: Any) -> torch.Tensor:
    """a - b of numbers, where bits count as whole numbers."""
    a, b = (t.to(torch.int64) if isinstance(t, torch.Tensor) and t.dtype == BOOL else t
            for t in (a, b))  # fmt: skip
    found: torch.Tensor = torch.sub(a, b) if isinstance(a, torch.Tensor) else torch.rsub(b, a)
    return found


def _equal(a: Any, b: Any) -> torch.Tensor:
    """Neither less nor greater; both signs in one go."""
    difference = _difference(a, b)
    both = _negative(torch.stack([difference, -difference]))
    less, greater = both.unbind()
    return 1 - (less.to(torch.int64) + greater)


def _comparison(kind: str, a: Any, b: Any) -> torch.Tensor:
    match kind:
        case "lt":
            return _less(a, b)
        case "gt":
            return _less(b, a) if isinstance(b, torch.Tensor) else _negative(_difference(b, a))
        case "ge":
            return _not(_less(a, b))
        case "le":
            return _not(_comparison("gt", a, b))
        case "eq":
            return lift(secret_of(_equal(a, b)), BOOL)
        case _:
            return lift(secret_of(1 - _equal(a, b)), BOOL)


for _kind in ("lt", "gt", "ge", "le", "eq", "ne"):
    for _overload in ("Tensor", "Scalar"):
        _func: OpOverload = getattr(getattr(aten, _kind), _overload)
        handles(_func)(partial(_comparison, _kind))


@handles(aten.logical_not.default, aten.bitwise_not.default)
def logical_not(x: torch.Tensor) -> torch.Tensor:
    """Of a secret bit."""
    return _not(_as_bit(x))


@handles(aten.logical_and.default, aten.bitwise_and.Tensor)
def logical_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of two bits."""
    return lift(secret_of(_as_bit(a) * _as_bit(b)), BOOL)


@handles(aten.logical_or.default, aten.bitwise_or.Tensor)
def logical_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b - a b."""
    a, b = _as_bit(a), _as_bit(b)
    return lift(secret_of(a.to(torch.int64) + b - a * b), BOOL)


@handles(aten.logical_xor.default, aten.bitwise_xor.Tensor)
def logical_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b - 2 a b."""
    a, b = _as_bit(a), _as_bit(b)
    return lift(secret_of(a.to(torch.int64) + b - 2 * (a * b).to(torch.int64)), BOOL)


def _as_bit(x: Any) -> Any:
    return x if x.dtype == BOOL else x != 0


@handles(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def where(condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    """b + condition (a - b)."""
    if not isinstance(condition, SharedTensor):
        condition = condition.to(torch.int64)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        dtype = torch.result_type(a, b)
    else:
        dtype = torch.get_default_dtype()
    found = condition * (a - b) + b
    return lift(secret_of(found), dtype)


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    """The value where the mask is true."""
    return where(mask, torch.full((), float(value), dtype=x.dtype), x)


# ---- rectifiers --------------------------------------------------------------------------------


@handles(aten.relu.default)
def relu(x: torch.Tensor) -> torch.Tensor:
    """x where it is not negative; the bit is kept for the backward pass."""
    kept = _not(_negative(x))
    y = lift(secret_of(kept * x), x.dtype)
    secret_of(y).positive = secret_of(kept)
    return y


def _positive(x: torch.Tensor) -> torch.Tensor:
    """Whether x > 0; of a ReLU's result it is known."""
    secret = secret_of(x)
    known = secret.positive if secret.unchanged else None
    return lift(known, BOOL) if known is not None else x > 0


@handles(aten.threshold_backward.default)
def threshold_backward(grad: torch.Tensor, x: torch.Tensor, threshold: float) -> torch.Tensor:
    """The gradient where x is above the threshold."""
    passed = _positive(x) if threshold == 0 else x > threshold
    return passed * grad


@handles(aten.leaky_relu.default)
def leaky_relu(x: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    """x, or slope x where it is negative."""
    return x - (1 - slope) * (_negative(x) * x)


@handles(aten.leaky_relu_backward.default)
def leaky_relu_backward(
    grad: torch.Tensor, x: torch.Tensor, slope: float, is_result: bool
) -> torch.Tensor:
    """The sign of the result is that of x."""
    return grad - (1 - slope) * (_negative(x) * grad)


@handles(aten.abs.default)
def absolute(x: torch.Tensor) -> torch.Tensor:
    """x - 2 (x < 0) x."""
    return x - 2 * (_negative(x) * x)


@handles(aten.sign.default, aten.sgn.default)
def sign(x: torch.Tensor) -> torch.Tensor:
    """1, 0 or -1."""
    less, greater = _negative(torch.stack([x, -x])).unbind()
    return lift(secret_of(greater.to(torch.int64) - less), torch.int64).to(x.dtype)


@handles(aten.maximum.default)
def maximum(a: Any, b: Any) -> torch.Tensor:
    """The greater of two, element by element."""
    return torch.relu(a - b) + b


@handles(aten.minimum.default)
def minimum(a: Any, b: Any) -> torch.Tensor:
    """The smaller of two, element by element."""
    return a - torch.relu(a - b)


@handles(aten.clamp.default, aten.hardtanh.default)
def clamp(x: torch.Tensor, low: float | None = None, high: float | None = None) -> torch.Tensor:
    """x within public bounds."""
    if low is not None:
        x = torch.relu(x - low) + low
    if high is not None:
        x = high - torch.relu(high - x)
    return x


@handles(
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default,
    aten.allclose.default,
)  # fmt: skip
def refuse_value(x: torch.Tensor, *_: Any, **__: Any) -> Any:
    """A secret decides nothing here."""
    raise UsageError(
        f"the value of {x!r} is secret: `if` and .item() need reveal() first; torch.where chooses "
        "without anybody knowing"
    )
