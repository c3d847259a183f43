"""The bilinear maps that secrets are multiplied by, exact in Z_2^64, and the shapes of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fedmpi.spdz.ring import matmul as ring

Tensor = torch.Tensor


class Window(NamedTuple):
    """What a convolution needs besides its factors; the numbers of each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int

    def numbers(self, *more: int) -> tuple[int, ...]:
        """For the wire; `more` comes last."""
        lists = (self.stride, self.padding, self.dilation, self.output_padding)
        return (len(self.stride), self.groups, *(n for one in lists for n in one), *more)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> tuple[Window, list[int]]:
        """From the wire, with what came last."""
        dims, groups, *rest = numbers
        stride, padding, dilation, output_padding = (
            tuple(rest[k * dims : (k + 1) * dims]) for k in range(4)
        )
        return cls(stride, padding, dilation, output_padding, groups), list(rest[4 * dims :])


def _convolution(x: Tensor, weight: Tensor, extra: Sequence[int]) -> Tensor:
    w, _ = Window.of(extra)
    return ring.convolution(x, weight, w.stride, w.padding, w.dilation, w.groups)


def _transposed(x: Tensor, weight: Tensor, extra: Sequence[int]) -> Tensor:
    w, _ = Window.of(extra)
    return ring.convolution_transposed(
        x, weight, w.stride, w.padding, w.output_padding, w.dilation, w.groups
    )


def _input_gradient(grad: Tensor, weight: Tensor, extra: Sequence[int]) -> Tensor:
    w, shape = Window.of(extra)
    return ring.grad_input(grad, shape, weight, w.stride, w.padding, w.dilation, w.groups)


def _weight_gradient(grad: Tensor, x: Tensor, extra: Sequence[int]) -> Tensor:
    w, kernel = Window.of(extra)
    return ring.grad_weight(grad, x, kernel, w.stride, w.padding, w.dilation, w.groups)


def _same_shape(x: Tensor, y: Tensor, extra: Sequence[int]) -> Sequence[int]:
    return torch.broadcast_shapes(x.shape, y.shape)


def _matmul_shape(x: Tensor, y: Tensor, extra: Sequence[int]) -> Sequence[int]:
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return (*batch, x.shape[-2], y.shape[-1])


def _convolved(x: Tensor, weight: Tensor, extra: Sequence[int]) -> Sequence[int]:
    w, _ = Window.of(extra)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[2:], weight.shape[2:], w.stride, w.padding, w.dilation, strict=True
        )
    ]
    return (x.shape[0], weight.shape[0], *sizes)


def _convolved_back(x: Tensor, weight: Tensor, extra: Sequence[int]) -> Sequence[int]:
    w, _ = Window.of(extra)
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, d, o in zip(
            x.shape[2:],
            weight.shape[2:],
            w.stride,
            w.padding,
            w.dilation,
            w.output_padding,
            strict=True,
        )
    ]
    return (x.shape[0], weight.shape[1] * w.groups, *sizes)


def _told(x: Tensor, y: Tensor, extra: Sequence[int]) -> Sequence[int]:
    """A gradient has the shape that its window is followed by."""
    return Window.of(extra)[1]


class _Kind(NamedTuple):
    product: Callable[..., Tensor]
    shape: Callable[..., Sequence[int]]


_KINDS = {
    "mul": _Kind(lambda x, y, extra: x * y, _same_shape),
    "matmul": _Kind(lambda x, y, extra: ring.matmul(x, y), _matmul_shape),
    "convolution": _Kind(_convolution, _convolved),
    "convolution_transposed": _Kind(_transposed, _convolved_back),
    "grad_input": _Kind(_input_gradient, _told),
    "grad_weight": _Kind(_weight_gradient, _told),
}


def product(kind: str, x: Tensor, y: Tensor, extra: Sequence[int] = ()) -> Tensor:
    """A product in Z_2^64.

    Args:
        kind: "mul" (element by element), "matmul", "convolution", "convolution_transposed",
            "grad_input" (of an output gradient and a weight) or "grad_weight" (of an output
            gradient and an input).
        x: int64, left factor.
        y: int64, right factor.
        extra: of a convolution, its `Window.numbers`, for a gradient followed by its shape.
    """
    return _KINDS[kind].product(x, y, extra)


def add_product(z: Tensor, kind: str, x: Tensor, y: Tensor, extra: Sequence[int] = ()) -> Tensor:
    """z + `product`, in place."""
    if kind == "matmul":
        return ring.matmul(x, y, accumulate_into=z)
    return z.add_(product(kind, x, y, extra))


def product_shape(kind: str, x: Tensor, y: Tensor, extra: Sequence[int] = ()) -> Sequence[int]:
    """The shape of `product`, from the shapes of the factors."""
    return _KINDS[kind].shape(x, y, extra)
