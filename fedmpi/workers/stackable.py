"""How each operator is taken on K models side by side: the table of `Stacked`.

An entry gets the arguments as they were recorded, tensors with a leading dimension of K. It
calls kernels that write into kept memory, and gives back what the operator's result is. None
of them lets a number of one model meet one of another.

A loss is the mean over a model's own rows; where PyTorch's operator knows a mean over all rows
only, its sums by row are taken, and 1 / n is put in where the gradient begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fedmpi.workers.building import Building, NotStackable, Value

Entry = Callable[..., Any]
TABLE: dict[str, Entry] = {}

_aten: Any = torch.ops.aten
_MEAN = 1


def takes(*operators: str) -> Callable[[Entry], Entry]:
    def entered(entry: Entry) -> Entry:
        for operator in operators:
            TABLE[operator] = entry
        return entry

    return entered


def _refuse(unless: bool, why: str) -> None:
    if not unless:
        raise NotStackable(why)


# Views


@takes("view")
def _view(build: Building, x: Value, shape: list[int]) -> Value:
    return build.view(torch.Tensor.view, x, [build.k, *shape])


@takes("t")
def _t(build: Building, x: Value) -> Value:
    return build.view(torch.transpose, x, 1, 2) if x.tensor.dim() == 3 else x


# Products


@takes("mm")
def _mm(build: Building, a: Value, b: Value) -> Value:
    made = build.result(build.k, a.tensor.shape[1], b.tensor.shape[2])
    build.call(torch.bmm, a, b, out=made)
    return made


@takes("addmm")
def _addmm(build: Building, c: Value, a: Value, b: Value, **factors: Any) -> Value:
    made = build.result(build.k, a.tensor.shape[1], b.tensor.shape[2])
    row = build.view(torch.unsqueeze, c, 1) if c.tensor.dim() == 2 else c
    build.call(torch.baddbmm, row, a, b, **factors, out=made)
    return made


@takes("addmm_")
def _addmm_(build: Building, c: Value, a: Value, b: Value, **factors: Any) -> Value:
    build.call(torch.Tensor.baddbmm_, c, a, b, **factors)
    return c


# Element by element


def _together(build: Building, *values: Value) -> tuple[list[Value], list[int]]:
    """Tensors of each model broadcast against each other, not against the models."""
    most = max(v.tensor.dim() for v in values)
    aligned = []
    for v in values:
        shape = list(v.tensor.shape)
        _refuse(bool(shape) and shape[0] == build.k, "a tensor that all models share")
        short = most - len(shape)
        wide = [build.k] + [1] * short + shape[1:]
        aligned.append(build.view(torch.Tensor.view, v, wide) if short else v)
    # NumPy's: PyTorch's would import sympy, which takes each worker half a second.
    return aligned, list(np.broadcast_shapes(*(v.tensor.shape for v in aligned)))


def _binary(kernel: Callable[..., Any]) -> Entry:
    def take(build: Building, a: Value, b: Any, **keywords: Any) -> Value:
        _refuse(isinstance(a, Value) and isinstance(b, Value), "a number in place of a tensor")
        (a, b), shape = _together(build, a, b)
        made = build.result(*shape, dtype=torch.result_type(a.tensor, b.tensor))
        build.call(kernel, a, b, **keywords, out=made)
        return made

    return take


def _in_place(kernel: Callable[..., Any]) -> Entry:
    def take(build: Building, a: Value, b: Any, **keywords: Any) -> Value:
        changed = a
        if isinstance(b, Value):
            (changed, b), shape = _together(build, a, b)
            _refuse(list(changed.tensor.shape) == shape, "a result larger than its place")
        build.call(kernel, changed, b, **keywords)
        return a

    return take


TABLE |= {
    "add.Tensor": _binary(torch.add),
    "sub.Tensor": _binary(torch.sub),
    "mul.Tensor": _binary(torch.mul),
    "div.Tensor": _binary(torch.div),
    "add_.Tensor": _in_place(torch.Tensor.add_),
    "mul_.Tensor": _in_place(torch.Tensor.mul_),
}


def _place(build: Building, x: Value) -> Value:
    """Where a result as large as x goes: into x, if nobody else reads it."""
    return x if x.alone and x.kept else build.result(*x.tensor.shape, dtype=x.tensor.dtype)


@takes("relu")
def _relu(build: Building, x: Value) -> Value:
    made = _place(build, x)
    if made is x:
        build.call(torch.relu_, x)
    else:
        build.call(torch.clamp_min, x, 0, out=made)
    return made


# No tanh or sigmoid: PyTorch rounds the end of a vector, which is left over from its widest
# registers, by another routine than the rest, so that a value would depend on its place in a stack.


@takes("threshold_backward")
def _threshold_backward(build: Building, gradient: Value, output: Value, bound: float) -> Value:
    made = _place(build, gradient)
    build.call(_aten.threshold_backward.grad_input, gradient, output, bound, grad_input=made)
    return made


@takes("sum.dim_IntList")
def _sum(build: Building, x: Value, dims: list[int], keepdim: bool = False) -> Value:
    behind = _behind(dims)
    like = x.tensor.sum(behind, keepdim)
    made = build.result(*like.shape, dtype=like.dtype)
    build.call(torch.sum, x, behind, keepdim, out=made)
    return made


def _behind(dims: Sequence[int]) -> list[int]:
    """Dimensions of one model's tensor, counted with the models' in front."""
    return [d + 1 if d >= 0 else d for d in dims]


# Losses


@takes("ones_like")
def _ones_like(build: Building, x: Value, memory_format: torch.memory_format) -> Value:
    _refuse(x.tensor.dim() == 1, "ones of a shape")
    return build.constant(torch.ones((), dtype=x.tensor.dtype))


def _starts(gradient: Value, reduction: int) -> None:
    """Whether a loss is a mean that the gradient begins with."""
    _refuse(reduction == _MEAN and gradient.tensor.dim() == 0, "a loss that is no mean, or no end")


@takes("_log_softmax")
def _log_softmax(build: Building, x: Value, dim: int, half_to_float: bool) -> Value:
    made = build.result(*x.tensor.shape, dtype=x.tensor.dtype)
    build.call(_aten._log_softmax.out, x, _behind([dim])[0], half_to_float, out=made)
    return made


@takes("_log_softmax_backward_data")
def _log_softmax_backward(
    build: Building, gradient: Value, output: Value, dim: int, dtype: torch.dtype
) -> Value:
    _refuse(gradient.tensor.shape == output.tensor.shape, "a gradient of another shape")
    made = build.result(*output.tensor.shape, dtype=dtype)
    arguments = gradient, output, _behind([dim])[0], dtype
    build.call(_aten._log_softmax_backward_data.out, *arguments, out=made)
    return made


class Labels(NamedTuple):
    """Those of all models in one row, which the loss has found to be below the number of classes.

    The gradient's kernel does not look again. No other operator takes them: they stay as they are.
    """

    row: Value
    shape: torch.Size
    ignore: int


@takes("nll_loss_forward")
def _nll_loss(
    build: Building, x: Value, y: Value, weight: None, reduction: int, ignore: int
) -> tuple[Value, Labels]:
    """The losses, and in place of the total weight the labels."""
    _refuse(reduction == _MEAN and weight is None and x.tensor.dim() == 3, "such a loss")
    k, n, classes = x.tensor.shape
    block = build.result(k, n, dtype=y.tensor.dtype)
    build.call(torch.Tensor.copy_, block, y)
    labels = build.view(torch.Tensor.view, block, [k * n])
    rows = build.view(torch.Tensor.view, x, [k * n, classes])
    losses, total = build.result(k * n), torch.zeros(())
    keywords = {"output": losses, "total_weight": total}
    build.call(_aten.nll_loss_forward.output, rows, labels, weight, 0, ignore, **keywords)
    mean = _mean(build, build.view(torch.Tensor.view, losses, [k, n]))
    return mean, Labels(labels, x.tensor.shape, ignore)


def _mean(build: Building, losses: Value) -> Value:
    made = build.result(build.k, dtype=losses.tensor.dtype)
    build.call(torch.mean, losses, [1], out=made)
    return made


@takes("nll_loss_backward")
def _nll_loss_backward(
    build: Building,
    gradient: Value,
    x: Value,
    y: Value,
    weight: None,
    reduction: int,
    ignore: int,
    labels: Labels,
) -> Value:
    _starts(gradient, reduction)
    is_looked_at = isinstance(labels, Labels) and labels[1:] == (x.tensor.shape, ignore)
    _refuse(is_looked_at and weight is None, "labels of another loss")
    k, n, classes = x.tensor.shape
    rows = build.view(torch.Tensor.view, x, [k * n, classes])
    made = build.result(k * n, classes, dtype=x.tensor.dtype)
    each = build.constant(torch.full((k * n,), 1 / n, dtype=x.tensor.dtype))
    arguments = each, rows, labels.row, weight, 0, ignore, torch.zeros(())
    build.call(_aten.nll_loss_backward.grad_input, *arguments, grad_input=made)
    return build.view(torch.Tensor.view, made, [k, n, classes])


@takes("mse_loss")
def _mse_loss(build: Building, x: Value, y: Value, reduction: int = _MEAN) -> Value:
    _refuse(reduction == _MEAN and x.tensor.dim() == 2, "such a loss")
    squares = build.result(*x.tensor.shape, dtype=x.tensor.dtype)
    build.call(torch.sub, x, y, out=squares)
    build.call(torch.mul, squares, squares, out=squares)
    return _mean(build, squares)


@takes("mse_loss_backward")
def _mse_loss_backward(
    build: Building, gradient: Value, x: Value, y: Value, reduction: int
) -> Value:
    _starts(gradient, reduction)
    made = build.result(*x.tensor.shape, dtype=x.tensor.dtype)
    build.call(torch.sub, x, y, out=made)
    build.call(torch.Tensor.mul_, made, 2 / x.tensor[0].numel())
    return made
