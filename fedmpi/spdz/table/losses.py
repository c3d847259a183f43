"""Losses, and the derivatives of those that have one of their own."""

from __future__ import annotations

from typing import Any

import torch

from fedmpi.spdz.table.lift import handles
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten
Tensor = torch.Tensor

NONE, MEAN = 0, 1
"""What PyTorch calls its reductions; the third one is the sum."""
_LEAST = 2.0**-12
"""Probabilities are not taken for less than this: logarithms and quotients of them end there."""


def _reduced(loss: Tensor, reduction: int) -> Tensor:
    if reduction == NONE:
        return loss
    return loss.mean() if reduction == MEAN else loss.sum()


def _share(reduction: int, x: Tensor) -> float:
    """By which the gradient of a reduced loss is multiplied."""
    return 1 / x.numel() if reduction == MEAN else 1.0


# ---- of differences ----------------------------------------------------------------------------


@handles(aten.mse_loss.default)
def mse_loss(x: Tensor, target: Tensor, reduction: int = MEAN) -> Tensor:
    """(x - target)^2."""
    difference = x - target
    return _reduced(difference * difference, reduction)


@handles(aten.mse_loss_backward.default)
def mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    """2 (x - target)."""
    return (2 * _share(reduction, x)) * ((x - target) * grad)


def _bent(x: Tensor, target: Tensor, at: float) -> tuple[Tensor, Tensor]:
    """The difference d, and d cut to -at ... at: the loss is cut (d - cut / 2) everywhere."""
    difference = x - target
    return difference, torch.clamp(difference, -at, at)


@handles(aten.huber_loss.default)
def huber_loss(x: Tensor, target: Tensor, reduction: int = MEAN, delta: float = 1.0) -> Tensor:
    """A parabola up to delta, straight lines beyond."""
    difference, cut = _bent(x, target, delta)
    return _reduced(cut * (difference - cut / 2), reduction)


@handles(aten.huber_loss_backward.default)
def huber_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, delta: float
) -> Tensor:
    """The difference, cut."""
    return _share(reduction, x) * (_bent(x, target, delta)[1] * grad)


@handles(aten.smooth_l1_loss.default)
def smooth_l1_loss(x: Tensor, target: Tensor, reduction: int = MEAN, beta: float = 1.0) -> Tensor:
    """huber / beta; for beta = 0 the absolute difference."""
    if beta == 0:
        return _reduced(torch.abs(x - target), reduction)
    return huber_loss(x, target, reduction, beta) / beta


@handles(aten.smooth_l1_loss_backward.default)
def smooth_l1_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float
) -> Tensor:
    """huber's / beta."""
    if beta == 0:
        return _share(reduction, x) * (torch.sign(x - target) * grad)
    return huber_loss_backward(grad, x, target, reduction, beta) / beta


# ---- of probabilities --------------------------------------------------------------------------


@handles(aten.binary_cross_entropy.default)
def binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    """-(t log x + (1 - t) log(1 - x)), where neither is taken for less than 2^-12."""
    yes, no = torch.log(torch.clamp(torch.stack([x, 1 - x]), min=_LEAST)).unbind()
    loss = -(no + target * (yes - no))
    return _reduced(loss if weight is None else loss * weight, reduction)


@handles(aten.binary_cross_entropy_backward.default)
def binary_cross_entropy_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    """(x - t) / (x (1 - x)), where the divisor is not taken for less than 2^-12."""
    found = (x - target) / torch.clamp(x * (1 - x), min=_LEAST)
    found = _share(reduction, x) * (found * grad)
    return found if weight is None else found * weight


@handles(aten.binary_cross_entropy_with_logits.default)
def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    """softplus(x) - t x; with a weight w of yes, (1 - t) x + (1 + (w - 1) t) softplus(-x)."""
    if pos_weight is None:
        loss = torch.nn.functional.softplus(x) - target * x
    else:
        rest = torch.nn.functional.softplus(-x)
        loss = x - target * x + rest + (pos_weight - 1) * target * rest
    return _reduced(loss if weight is None else loss * weight, reduction)


# ---- of classes --------------------------------------------------------------------------------


def _weights(x: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """Like x, but 0 where a sample has not that class, and its weight where it has."""
    dim = 1 if x.dim() > 1 else 0
    classes = torch.arange(x.shape[dim]).view(-1, *[1] * (x.dim() - dim - 1))
    found: Tensor = target.unsqueeze(dim) == classes
    if weight is not None:
        found = found * weight.view(classes.shape)
    elif not isinstance(found, SharedTensor):
        found = found.to(torch.int64)
    if 0 <= ignored < x.shape[dim]:
        found = found * (classes != ignored)
    return found


@handles(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The sum of -x at the classes, which may be secret, too; and of the weights."""
    dim = 1 if x.dim() > 1 else 0
    weights = _weights(x, target, weight, ignore_index)
    loss = -(x * weights)
    if reduction == NONE:
        return loss.sum(dim), torch.zeros(())
    total = _total(weights, target, weight, ignore_index, x.dtype)
    return (loss.sum() / total if reduction == MEAN else loss.sum()), total


def _total(
    weights: Tensor, target: Tensor, weight: Tensor | None, ignored: int, dtype: torch.dtype
) -> Tensor:
    """Public if the targets are, or if they do not matter."""
    if isinstance(weights, SharedTensor) and weight is None and ignored < 0:
        return torch.tensor(float(target.numel()), dtype=dtype)
    return weights.sum().to(dtype)


@handles(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    """-1 at the classes."""
    weights: Any = _weights(x, target, weight, ignore_index)
    if reduction == NONE:
        return -(weights * grad.unsqueeze(1 if x.dim() > 1 else 0))
    return -(weights * (grad / total_weight if reduction == MEAN else grad))
