"""Normalisation over batches, layers and groups; dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedmpi.spdz.table.functions import deviation
from fedmpi.spdz.table.lift import handles, lift, secret_of
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten
Tensor = torch.Tensor
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


FINER = 4
"""More fractional bits of a variance: a unit of it is multiplied by its power -3/2, and in the
gradient by its square. A deviation may be up to 2^13 with them."""


def _normalised(x: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, ...]:
    """x less its mean, times the inverse deviation; also mean, inverse deviation, and variance."""
    mean, rest = deviation(x, dims)
    variance = _mean_square(rest, dims)
    inverse = torch.rsqrt(variance + eps)
    return _scaled(rest, inverse), mean, inverse, variance


def _mean_square(x: Tensor, dims: Sequence[int]) -> Tensor:
    """With a finer scale than x; the sum may be as large as 2^42."""
    if not isinstance(x, SharedTensor):
        return (x * x).mean(list(dims), keepdim=True)
    secret = secret_of(x)
    squares = secret.times(secret, scale=secret.bits + FINER)
    total = squares.local(aten.sum.dim_IntList, list(dims), True)
    count = max(x.numel() // max(total.share.numel(), 1), 1)
    # A power of two first, by a cut: what is left to divide by is exact enough with fewer bits.
    power = count.bit_length() - 1
    if power:
        total = total.new(total.share, total.bits + power).cut(power)
    return lift(total.times_number(2**power / count, secret.bits), x.dtype)


def _coarse(variance: Tensor) -> Tensor:
    """At the scale of other numbers again."""
    if not isinstance(variance, SharedTensor):
        return variance
    return lift(secret_of(variance).cut(FINER), variance.dtype)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """A product with a factor of a finer scale, at the scale of x."""
    if not (isinstance(x, SharedTensor) and isinstance(factor, SharedTensor)):
        return x * factor
    secret = secret_of(x)
    return lift(secret.times(secret_of(factor), scale=secret.bits), x.dtype)


def _inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """Of a variance at the scale of other numbers, which eps may be too fine for."""
    if isinstance(variance, SharedTensor):
        secret = secret_of(variance)
        variance = lift(secret.with_bits(secret.bits + FINER), variance.dtype)
    return torch.rsqrt(variance + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    if weight is not None:
        x = x * weight.view(*shape)
    return x if bias is None else x + bias.view(*shape)


def _through(grad: Tensor, normal: Tensor, inverse: Tensor, dims: Sequence[int]) -> Tensor:
    """The gradient of what was normalised: less its part along the mean and along the result.

    Source: Ioffe, Szegedy, "Batch Normalization" (ICML 2015), section 3, in fewer steps.
    """
    along = (grad * normal).mean(list(dims), keepdim=True)
    return _scaled(grad - grad.mean(list(dims), keepdim=True) - normal * along, inverse)


# ---- batches -----------------------------------------------------------------------------------


def _channels(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions that are averaged over, and the shape of what there is for each channel."""
    return [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]


@handles(aten.native_batch_norm.default)
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With the statistics of the batch, which the running ones then follow, or with those."""
    dims, shape = _channels(x)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        inverse = _inverse_deviation(running_var, eps).view(*shape)
        normal = _scaled(x - running_mean.view(*shape), inverse)
        return _affine(normal, weight, bias, shape), torch.empty(0), torch.empty(0)
    normal, mean, inverse, variance = _normalised(x, dims, eps)
    count = x.numel() // x.shape[1]
    if running_mean is not None:
        running_mean.add_(momentum * (mean.view(-1) - running_mean))
    if running_var is not None:
        unbiased = _coarse(variance).view(-1) * (count / max(count - 1, 1))
        running_var.add_(momentum * (unbiased - running_var))
    return _affine(normal, weight, bias, shape), mean.view(-1), inverse.view(-1)


@handles(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_inverse: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> Gradients:
    """As aten.native_batch_norm_backward."""
    dims, shape = _channels(x)
    if train:
        assert save_mean is not None
        assert save_inverse is not None
        mean, inverse = save_mean.view(*shape), save_inverse.view(*shape)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean = running_mean.view(*shape)
        inverse = _inverse_deviation(running_var, eps).view(*shape)
    normal = _scaled(x - mean, inverse)
    scaled = grad if weight is None else grad * weight.view(*shape)
    by_x = _through(scaled, normal, inverse, dims) if train else _scaled(scaled, inverse)
    by_weight = (grad * normal).sum(dims) if output_mask[1] else None
    return by_x if output_mask[0] else None, by_weight, grad.sum(dims) if output_mask[2] else None


# ---- layers and groups -------------------------------------------------------------------------


@handles(aten.native_layer_norm.default)
def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the last dimensions, which have this shape."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    normal, mean, inverse, _ = _normalised(x, dims, eps)
    return _affine(normal, weight, bias, shape), mean, inverse


@handles(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> Gradients:
    """As aten.native_layer_norm_backward."""
    split = x.dim() - len(shape)
    dims, outer = list(range(split, x.dim())), list(range(split))
    normal = _scaled(x - mean, inverse)
    scaled = grad if weight is None else grad * weight
    by_x = _through(scaled, normal, inverse, dims) if output_mask[0] else None
    by_weight = _summed(grad * normal, outer) if output_mask[1] else None
    return by_x, by_weight, _summed(grad, outer) if output_mask[2] else None


def _summed(x: Tensor, dims: Sequence[int]) -> Tensor:
    return x.sum(list(dims)) if dims else x


@handles(aten.native_group_norm.default)
def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over a group of channels and what they cover."""
    normal, mean, inverse, _ = _normalised(x.reshape(n, groups, -1), [2], eps)
    shape = [1, channels, *[1] * (x.dim() - 2)]
    y = _affine(normal.view(x.shape), weight, bias, shape)
    return y, mean.view(n, groups), inverse.view(n, groups)


@handles(aten.native_group_norm_backward.default)
def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    n: int,
    channels: int,
    size: int,
    groups: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """As aten.native_group_norm_backward."""
    inverse = inverse.view(n, groups, 1)
    normal = _scaled(x.reshape(n, groups, -1) - mean.view(n, groups, 1), inverse)
    by_x: Any = None
    if output_mask[0]:
        scaled = grad if weight is None else grad * weight.view(1, -1, *[1] * (x.dim() - 2))
        by_x = _through(scaled.reshape(n, groups, -1), normal, inverse, [2]).view(x.shape)
    flat = grad.reshape(n, channels, -1)
    by_weight = (flat * normal.view(flat.shape)).sum([0, 2]) if output_mask[1] else None
    return by_x, by_weight, flat.sum([0, 2]) if output_mask[2] else None


# ---- dropout -----------------------------------------------------------------------------------


@handles(aten.empty_like.default)
def empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Public memory of all parties, into which dropout draws what it keeps."""
    return _memory(x, dtype)


def _memory(x: Tensor, dtype: torch.dtype | None = None) -> PointerTensor:
    found: PointerTensor = call(
        aten.empty_like.default, (secret_of(x).share,), {"dtype": dtype or x.dtype}
    )
    return found


@handles(aten.native_dropout.default)
def native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """The mask is public, and drawn by the parties: by all of them from the same seed."""
    if train is False or p == 0:
        return x, torch.ones(x.shape, dtype=torch.bool)
    kept = _memory(x).bernoulli_(1 - p)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


@handles(aten.native_dropout_backward.default)
def native_dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    """What was kept, scaled."""
    return grad * mask * scale
