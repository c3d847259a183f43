"""Sums and products of secrets with secrets, with public tensors and with numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload

from fedmpi.errors import UsageError
from fedmpi.spdz.fixed_point import BITS, largest
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import bits_of, group_of, handles, lift, public, secret_of
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

Operand = torch.Tensor | float | int


def number_in(value: Any) -> float | int | None:
    """The number that a public operand is, if all its elements are the same; else None.

    Gradients often are: those of a sum or a mean. A number needs no message.
    """
    if isinstance(value, int | float):
        return _fitting(value)
    if isinstance(value, SharedTensor | PointerTensor) or not value.numel():
        return None
    first = value.flatten()[0]
    if value.dim() and not bool((value == first).all()):
        return None
    return _fitting(first.item())


def _fitting(value: Any) -> Any:
    """A number that shares can be computed with: refused here, not on the parties."""
    if not abs(value) < largest(BITS):
        raise UsageError(
            f"{value:g} met a shared tensor: numbers must lie between -{largest(BITS):g} and "
            f"{largest(BITS):g}"
        )
    return value


def _spread(x: torch.Tensor, other: Any) -> torch.Tensor:
    """x, in the shape that it has together with a public operand."""
    if not isinstance(other, torch.Tensor):
        return x
    shape = torch.broadcast_shapes(x.shape, other.shape)
    return x if shape == x.shape else x.expand(shape)


def _dtype(a: Any, b: Any) -> torch.dtype:
    return torch.result_type(a, b)


def _fraction(secret: Secret, dtype: torch.dtype) -> Secret:
    """With fractional bits, if the dtype has them: a shared bit or count that becomes real."""
    return secret.with_bits(BITS) if dtype.is_floating_point and not secret.bits else secret


# ---- sums --------------------------------------------------------------------------------------


def _plus(a: Operand, b: Operand) -> torch.Tensor:
    if not isinstance(a, SharedTensor):
        a, b = b, a
    assert isinstance(a, SharedTensor)
    dtype = _dtype(a, b)
    ours = _fraction(secret_of(a), dtype)
    if isinstance(b, SharedTensor):
        group_of((a, b))
        return lift(ours.plus(_fraction(secret_of(b), dtype)), dtype)
    number = number_in(b)
    if number is not None:
        spread = _fraction(secret_of(_spread(a, b)), dtype)
        return lift(spread.plus_number(float(number)), dtype)
    assert isinstance(b, torch.Tensor)
    return lift(ours.plus_public(public(ours.group, b, ours.bits), ours.bits), dtype)


def _scaled(b: Operand, alpha: float) -> Operand:
    return b if alpha == 1 else b * alpha


@handles(aten.add.Tensor, aten.add.Scalar)
def add(a: Operand, b: Operand, alpha: float = 1) -> torch.Tensor:
    """a + alpha b."""
    return _plus(a, _scaled(b, alpha))


@handles(aten.sub.Tensor, aten.sub.Scalar)
def sub(a: Operand, b: Operand, alpha: float = 1) -> torch.Tensor:
    """a - alpha b."""
    if isinstance(a, SharedTensor) and isinstance(b, SharedTensor) and alpha == 1:
        group_of((a, b))
        dtype = _dtype(a, b)
        ours, theirs = (_fraction(secret_of(t), dtype) for t in (a, b))
        return lift(ours.minus(theirs), dtype)
    return _plus(a, _scaled(b, -alpha))


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(a: Operand, b: Operand, alpha: float = 1) -> torch.Tensor:
    """b - alpha a."""
    return sub(b, a, alpha)


# ---- products ----------------------------------------------------------------------------------


@handles(aten.mul.Tensor, aten.mul.Scalar)
def mul(a: Operand, b: Operand) -> torch.Tensor:
    """a b, element by element."""
    x, other = (a, b) if isinstance(a, SharedTensor) else (b, a)
    assert isinstance(x, SharedTensor)
    number = number_in(other)
    if number is not None:
        dtype = _dtype(x, other)
        spread = _fraction(secret_of(_spread(x, other)), dtype)
        return lift(spread.times_number(float(number)), dtype)
    assert isinstance(other, torch.Tensor)
    return product(x, other, "mul")


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    kind: str,
    extra: tuple[int, ...] = (),
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """A product of two tensors, at least one of them shared, and a sum with a third one.

    Args:
        a: left factor.
        b: right factor.
        kind: see `fedmpi.spdz.ring.products`.
        extra: numbers that the product needs.
        plus: broadcast to the product's shape.
    """
    if plus is not None and not all(isinstance(t, SharedTensor) for t in (a, b, plus)):
        return add(product(a, b, kind, extra), plus)
    group = group_of((a, b) if plus is None else (a, b, plus))
    if kind == "matmul" and a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"matrices of {list(a.shape)} and {list(b.shape)} cannot be multiplied")
    dtype = torch.promote_types(a.dtype, b.dtype) if a.dtype != b.dtype else a.dtype
    if isinstance(a, SharedTensor) and isinstance(b, SharedTensor):
        added = None if plus is None else secret_of(plus)
        found = secret_of(a).times(secret_of(b), kind, extra, added)
    elif isinstance(a, SharedTensor):
        bits = bits_of(b.dtype)
        found = secret_of(a).times_public(public(group, b, bits), bits, kind, extra)
    else:
        assert isinstance(b, SharedTensor)
        bits = bits_of(a.dtype)
        found = secret_of(b).times_public(public(group, a, bits), bits, kind, extra, swapped=True)
    return lift(_fraction(found, dtype), dtype)


@handles(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The matrix product."""
    if a.dim() == 1 and b.dim() == 1:
        return product(a.unsqueeze(0), b.unsqueeze(1), "matmul").view(())
    if b.dim() == 1:
        return product(a, b.unsqueeze(1), "matmul").squeeze(-1)
    return product(a, b, "matmul")


@handles(aten.addmm.default, aten.addmv.default, aten.baddbmm.default)
def addmm(
    bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """beta bias + alpha a b."""
    if alpha == beta == 1 and b.dim() > 1:
        return product(a, b, "matmul", plus=bias)
    return add(_scaled(matmul(a, b), alpha), _scaled(bias, beta))


@handles(aten.square.default)
def square(x: torch.Tensor) -> torch.Tensor:
    """x x, with one mask."""
    return mul(x, x)


@handles(aten.addcmul.default)
def addcmul(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: float = 1) -> torch.Tensor:
    """x + value a b."""
    return add(x, _scaled(mul(a, b), value))


@handles(aten.addcdiv.default)
def addcdiv(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: float = 1) -> torch.Tensor:
    """x + value a / b."""
    return add(x, _scaled(a / b, value))


@handles(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(a: torch.Tensor, b: torch.Tensor, weight: Operand) -> torch.Tensor:
    """a + weight (b - a)."""
    return add(a, mul(sub(b, a), weight))


@handles(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor)
def div(a: Operand, b: Operand) -> torch.Tensor:
    """a / b: by a secret through its reciprocal, by what is public exactly."""
    if isinstance(b, SharedTensor):
        return mul(a, torch.reciprocal(b))
    assert isinstance(a, SharedTensor)
    if not isinstance(b, PointerTensor) and not torch.all(torch.as_tensor(b) != 0):
        raise UsageError(f"{a!r} was divided by 0")
    real = _converted(a, torch.result_type(a, 1.0))
    return mul(real, 1 / b)


@handles(aten.mean.default)
def mean(x: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The sum, divided by a public number."""
    return x.sum() / x.numel()


@handles(aten.mean.dim)
def mean_dim(
    x: torch.Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """As `mean`, over some dimensions."""
    total = torch.sum(x, dim, keepdim)
    return total / (x.numel() / max(total.numel(), 1))


@handles(aten._to_copy.default)
def to_copy(x: torch.Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    """A change of dtype: to a finer scale only."""
    found = _converted(x, dtype or x.dtype)
    # The result has memory of its own, as a conversion's has: it may be written.
    return found.clone() if secret_of(found) is secret_of(x) else found


def _converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same shares, if they do for that dtype."""
    secret = secret_of(x)
    if secret.bits and not dtype.is_floating_point:
        raise UsageError(
            f"{x!r} cannot become {dtype}: compare it, or reveal() it and round the value"
        )
    return lift(_fraction(secret, dtype), dtype)


@handles(aten.ones_like.default)
def ones_like(x: torch.Tensor, **_: Any) -> torch.Tensor:
    """Public ones, without memory."""
    return torch.ones((), dtype=x.dtype).expand(x.shape)


@handles(aten.full_like.default)
def full_like(x: torch.Tensor, value: float, **_: Any) -> torch.Tensor:
    """A public number everywhere, without memory."""
    return torch.full((), value, dtype=x.dtype).expand(x.shape)


# ---- in place ----------------------------------------------------------------------------------


def _refuse_plain(x: torch.Tensor) -> None:
    """What is secret cannot be written into memory that is here."""
    if not isinstance(x, SharedTensor):
        raise UsageError(
            f"a secret was to be written into a tensor of shape {list(x.shape)} that is not "
            "shared: share that one too, or write x = x + y in place of x += y"
        )


def _assign(x: torch.Tensor, value: Any) -> torch.Tensor:
    """Gives x's shares other values; whoever looks at the same memory sees them."""
    _refuse_plain(x)
    secret = secret_of(x)
    if not isinstance(value, SharedTensor):
        value = torch.zeros_like(x) + value
    group_of((x, value))
    found = secret_of(value)
    if found.bits > secret.bits:
        raise UsageError(f"{value!r} has more fractional bits than {x!r}, into which it is written")
    call(aten.copy_.default, (secret.share, found.with_bits(secret.bits).share), {})
    secret.changed()
    return x


@handles(aten.copy_.default)
def copy_(x: torch.Tensor, value: Any, non_blocking: bool = False) -> torch.Tensor:
    """Values of a shared or a public tensor."""
    return _assign(x, value)


def _in_place(func: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    _refuse_plain(x)
    return _assign(x, func(x, *args, **kwargs))


@handles(aten.zero_.default)
def zero_(x: torch.Tensor) -> torch.Tensor:
    """All shares become 0."""
    call(aten.zero_.default, (secret_of(x).share,), {})
    secret_of(x).changed()
    return x


@handles(aten.fill_.Scalar, aten.fill_.Tensor)
def fill_(x: torch.Tensor, value: Any) -> torch.Tensor:
    """A public number."""
    return _assign(x, float(value))


def add_(x: torch.Tensor, other: Any, alpha: float = 1) -> torch.Tensor:
    """x + alpha other, by each party in its own share."""
    _refuse_plain(x)
    added = _scaled(other, alpha)
    secret = secret_of(x)
    if isinstance(added, SharedTensor) and secret_of(added).bits <= secret.bits:
        group_of((x, added))
        theirs = secret_of(added).with_bits(secret.bits).share
        call(aten.add_.Tensor, (secret.share, theirs), {})
        secret.changed()
        return x
    return _assign(x, _plus(x, added))


@handles(aten.sub_.Tensor, aten.sub_.Scalar)
def sub_(x: torch.Tensor, other: Any, alpha: float = 1) -> torch.Tensor:
    """x - alpha other."""
    return add_(x, other, -alpha)


handles(aten.add_.Tensor, aten.add_.Scalar)(add_)

_IN_PLACE: dict[OpOverload, OpOverload] = {
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.mul_.Scalar: aten.mul.Scalar,
    aten.div_.Tensor: aten.div.Tensor,
    aten.div_.Scalar: aten.div.Scalar,
    aten.addcmul_.default: aten.addcmul.default,
    aten.addcdiv_.default: aten.addcdiv.default,
    aten.lerp_.Scalar: aten.lerp.Scalar,
    aten.neg_.default: aten.neg.default,
    aten.relu_.default: aten.relu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.tanh_.default: aten.tanh.default,
    aten.exp_.default: aten.exp.default,
    aten.sqrt_.default: aten.sqrt.default,
    aten.clamp_.default: aten.clamp.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.pow_.Scalar: aten.pow.Tensor_Scalar,
    aten.masked_fill_.Scalar: aten.masked_fill.Scalar,
    aten.masked_fill_.Tensor: aten.masked_fill.Tensor,
    aten.abs_.default: aten.abs.default,
    aten.square_.default: aten.square.default,
    aten.addmm_.default: aten.addmm.default,
    aten.addmv_.default: aten.addmv.default,
    aten.baddbmm_.default: aten.baddbmm.default,
    aten.addbmm_.default: aten.addbmm.default,
    aten.tril_.default: aten.tril.default,
    aten.triu_.default: aten.triu.default,
    aten.cumsum_.default: aten.cumsum.default,
    aten.threshold_.default: aten.threshold.default,
    aten.logical_not_.default: aten.logical_not.default,
    aten.logical_and_.default: aten.logical_and.default,
    aten.logical_or_.default: aten.logical_or.default,
    aten.index_put_.default: aten.index_put.default,
    aten._index_put_impl_.default: aten.index_put.default,
    aten.index_add_.default: aten.index_add.default,
    aten.index_copy_.default: aten.index_copy.default,
    aten.index_fill_.int_Scalar: aten.index_fill.int_Scalar,
    aten.put_.default: aten.put.default,
    aten.masked_scatter_.default: aten.masked_scatter.default,
    aten.scatter_.src: aten.scatter.src,
    aten.scatter_.value: aten.scatter.value,
    aten.scatter_add_.default: aten.scatter_add.default,
}
for _writes, _pure in _IN_PLACE.items():
    handles(_writes)(partial(_in_place, _pure))
