"""The ring Z_2^64 on int64 tensors: exact products of matrices, and convolutions, mod 2^64.

Sums, differences and elementwise products are torch's own: int64 wraps around.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from fedmpi.spdz.ring.convolution import (
    convolution,
    convolution_transposed,
    grad_input,
    grad_weight,
)
from fedmpi.spdz.ring.grid import Axis, Grid, by_kernel, check, kernels, multiply

__all__ = ["matmul", "convolution", "convolution_transposed", "grad_input", "grad_weight"]


def matmul(
    a: Tensor, b: Tensor, *, out: Tensor | None = None, accumulate_into: Tensor | None = None
) -> Tensor:
    """a b mod 2^64.

    Args:
        a: int64 [..., m, k], any strides.
        b: int64 [..., k, n], any strides; batch dimensions broadcast.
        out: int64 [..., m, n], overwritten; shares no memory with a or b.
        accumulate_into: int64 [..., m, n], gets a b added; shares no memory with a or b.

    Returns:
        int64 [..., m, n]: `out`, `accumulate_into`, or a new tensor.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul of {list(a.shape)} and {list(b.shape)}: no [m, k] x [k, n]")
    batch: tuple[int, ...] = ()
    if a.ndim > 2 or b.ndim > 2:
        batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    shape = (*batch, a.shape[-2], b.shape[-1])
    out = _output(shape, a, out, accumulate_into)
    keep = accumulate_into is not None
    m, n, k = shape[-2], shape[-1], a.shape[-1]
    if prod(shape) == 0 or k == 0:
        return out if keep else out.zero_()
    (am, ak), (bk, bn), (cm, cn) = a.stride()[-2:], b.stride()[-2:], out.stride()[-2:]
    if len(shape) == 2 and min(m, n) == 1 and by_kernel(a.device):
        check(a, b, out)
        x, w, y = a.data_ptr(), b.data_ptr(), out.data_ptr()
        mask = -1 if keep else 0
        if m == 1:
            kernels().multiply_vector(n, k, x, ak, w, bk, bn, y, cn, mask)
        else:  # the transposed product: b's column times the rows of a
            kernels().multiply_vector(m, k, w, bk, x, ak, am, y, cm, mask)
        return out
    rows: Axis = ((m, am),)
    c_rows: Axis = ((m, cm),)
    a_batch, b_batch, c_batch = (_batch_axis(t, batch) for t in (a, b, out))
    if b.ndim == 2 and batch:  # one b for all: the batch of a is more rows
        rows, c_rows, a_batch, b_batch, c_batch = a_batch + rows, c_batch + c_rows, (), (), ()
    multiply(
        Grid(a, a_batch, rows, ((k, ak),)),
        Grid(b, b_batch, ((k, bk),), ((n, bn),)),
        Grid(out, c_batch, c_rows, ((n, cn),)),
        accumulate=keep,
    )
    return out


def _batch_axis(t: Tensor, batch: tuple[int, ...]) -> Axis:
    """The leading dimensions of t, broadcast to a batch."""
    if not batch:
        return ()
    return tuple(zip(batch, t.expand(*batch, *t.shape[-2:]).stride(), strict=False))


def _output(
    shape: tuple[int, ...], like: Tensor, out: Tensor | None, accumulate_into: Tensor | None
) -> Tensor:
    if out is not None and accumulate_into is not None:
        raise ValueError("give out or accumulate_into, not both")
    given = out if out is not None else accumulate_into
    if given is None:
        return like.new_empty(shape)
    if given.shape != shape:
        raise ValueError(f"the product has the shape {list(shape)}, out has {list(given.shape)}")
    return given
