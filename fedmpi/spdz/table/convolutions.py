"""Convolutions of secrets, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmpi.spdz.ring.products import Window
from fedmpi.spdz.table.arithmetic import product
from fedmpi.spdz.table.lift import handles
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

Sizes = Sequence[int]


def _window(
    dims: int, stride: Sizes, padding: Sizes, dilation: Sizes, output_padding: Sizes, groups: int
) -> Window:
    """With one number for each spatial dimension, as PyTorch takes one for all."""

    def each(numbers: Sizes) -> tuple[int, ...]:
        return tuple(numbers) if len(numbers) == dims else tuple(numbers) * dims

    return Window(each(stride), each(padding), each(dilation), each(output_padding), groups)


def _any_shared(*tensors: torch.Tensor) -> bool:
    """Not of a gradient and a factor that are both known to all."""
    return any(isinstance(tensor, SharedTensor) for tensor in tensors)


@handles(aten.convolution.default)
def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> torch.Tensor:
    """As aten.convolution."""
    if x.dim() == weight.dim() - 1:
        return convolution(
            x.unsqueeze(0), weight, bias, stride, padding, dilation, transposed,
            output_padding, groups,
        ).squeeze(0)  # fmt: skip
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    if x.dim() != weight.dim() or x.shape[1] != channels or weight.shape[0] % groups:
        raise RuntimeError(
            f"an input of {list(x.shape)} does not fit a weight of {list(weight.shape)} "
            f"in {groups} groups"
        )
    window = _window(weight.dim() - 2, stride, padding, dilation, output_padding, groups)
    kind = "convolution_transposed" if transposed else "convolution"
    plus = None if bias is None else bias.view(-1, *[1] * (weight.dim() - 2))
    return product(x, weight, kind, window.numbers(), plus)


@handles(aten.convolution_backward.default)
def convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """As aten.convolution_backward."""
    how = (stride, padding, dilation, transposed, output_padding, groups)
    window = _window(weight.dim() - 2, stride, padding, dilation, output_padding, groups)
    by_x: torch.Tensor | None = None
    by_weight: torch.Tensor | None = None
    by_bias: torch.Tensor | None = None
    if output_mask[0]:
        if not _any_shared(grad, weight):
            like = torch.empty(x.shape, dtype=x.dtype)
            by_x = aten.convolution_backward(grad, like, weight, None, *how, [True, False, False])[
                0
            ]
        elif transposed:  # a transposed convolution is the gradient of a convolution, and back
            by_x = product(grad, weight, "convolution", window.numbers())
        else:
            by_x = product(grad, weight, "grad_input", window.numbers(*x.shape))
    if output_mask[1] and not _any_shared(grad, x):
        like = torch.empty(weight.shape, dtype=weight.dtype)
        by_weight = aten.convolution_backward(grad, x, like, None, *how, [False, True, False])[1]
    elif output_mask[1]:
        outer, inner = (x, grad) if transposed else (grad, x)
        by_weight = product(outer, inner, "grad_weight", window.numbers(*weight.shape))
    if output_mask[2]:
        by_bias = grad.sum([0, *range(2, grad.dim())])
    return by_x, by_weight, by_bias
