"""Exact products in the ring Z_2^64: matrices and convolutions of int64 tensors, mod 2^64.

No BLAS multiplies 64-bit integers. On a CPU the product is a compiled kernel (`kernels`); on a GPU
it is split into limbs that float64 multiplies exactly (`limbs`). Both see an operand through its
strides alone (`Grid`): a transposed matrix, a broadcast batch, the windows of an image and the taps
of a strided transposed convolution are read where they lie, and im2col is never written out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from math import prod
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedmpi.spdz import limbs

Axis = tuple[tuple[int, int], ...]
"""(size, stride) of the tensor's dimensions that together make one axis of a matrix."""


class Grid(NamedTuple):
    """A batch of matrices inside a tensor: what its three axes are made of, and where it starts."""

    tensor: Tensor
    batch: Axis
    rows: Axis
    cols: Axis
    start: int = 0

    def view(self) -> Tensor:
        """All dimensions of batch, rows and cols, one after another."""
        sizes, strides = zip(*(self.batch + self.rows + self.cols), strict=True)
        return self.tensor.as_strided(sizes, strides, self.tensor.storage_offset() + self.start)

    def dense(self) -> Tensor:
        """The matrices [batch, rows, cols]."""
        return self.view().reshape(_size(self.batch), _size(self.rows), _size(self.cols))


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
    if len(shape) == 2 and min(m, n) == 1 and a.device.type == "cpu":
        _check(a, b, out)
        x, w, y = a.data_ptr(), b.data_ptr(), out.data_ptr()
        mask = -1 if keep else 0
        if m == 1:
            _kernels().multiply_vector(n, k, x, ak, w, bk, bn, y, cn, mask)
        else:  # the transposed product: b's column times the rows of a
            _kernels().multiply_vector(m, k, w, bk, x, ak, am, y, cm, mask)
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


def convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """aten.convolution without bias, mod 2^64.

    Args:
        x: int64 [batch, in, *size], of one or two (or more) spatial dimensions.
        weight: int64 [out, in / groups, *kernel].
        stride: one for each spatial dimension; padding and dilation too.
        padding: zeros on both sides.
        dilation: distance of the kernel's taps.
        groups: channels are cut into so many groups, convolved apart.

    Returns:
        int64 [batch, out, *output size], contiguous.
    """
    _check_channels(x.shape[1], weight.shape[1] * groups, weight.shape[0], groups)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sizes = [
        (s + 2 * p - span) // step + 1
        for s, p, span, step in zip(x.shape[2:], padding, spans, stride, strict=True)
    ]
    if min(sizes) < 1:
        raise ValueError(f"kernel {spans} (with dilation) is larger than the padded input")
    x = _padded(x, [(p, p) for p in padding])
    out = x.new_empty(x.shape[0], weight.shape[0], *sizes)
    group, channels, taps, image, places = _windows(x, weight, sizes, stride, dilation, groups)
    c_group, c_channels, c_places = _channels(out, groups)
    w_group, w_rows, w_cols = _filters(weight, groups)
    multiply(
        Grid(weight, w_group, w_rows, w_cols),
        Grid(x, group, channels + taps, image + places),
        Grid(out, c_group, c_channels, c_places),
    )
    return out


def grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """The gradient of `convolution` by its weight, mod 2^64: aten.convolution_backward's second.

    Args:
        grad: int64 [batch, out, *output size], the gradient by the convolution's output.
        x: int64 [batch, in, *size], the convolution's input.
        kernel_shape: the weight's, [out, in / groups, *kernel].
        stride: as in `convolution`; padding, dilation and groups too.
        padding: zeros on both sides.
        dilation: distance of the kernel's taps.
        groups: as in `convolution`.

    Returns:
        int64 of shape kernel_shape, contiguous.
    """
    x = _padded(x, [(p, p) for p in padding])
    out = x.new_empty(tuple(kernel_shape))
    group, channels, taps, image, places = _windows(
        x, out, grad.shape[2:], stride, dilation, groups
    )
    g_group, g_channels, g_places = _channels(grad, groups)
    w_group, w_rows, w_cols = _filters(out, groups)
    multiply(
        Grid(grad, g_group, g_channels, g_places),
        Grid(x, group, image + places, channels + taps),
        Grid(out, w_group, w_rows, w_cols),
    )
    return out


def convolution_transposed(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """aten.convolution with transposed=True and no bias, mod 2^64.

    Args:
        x: int64 [batch, in, *size].
        weight: int64 [in, out / groups, *kernel].
        stride: the stride of the convolution that this one undoes; padding and dilation too.
        padding: zeros on both sides of that convolution's input.
        output_padding: how many places the output gets at its end.
        dilation: distance of the kernel's taps.
        groups: as in `convolution`.

    Returns:
        int64 [batch, out, *output size], contiguous.
    """
    sizes = [
        (s - 1) * step - 2 * p + d * (k - 1) + 1 + extra
        for s, step, p, d, k, extra in zip(
            x.shape[2:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True
        )
    ]
    if min(sizes) < 1:
        raise ValueError(f"the transposed convolution's output would have the size {sizes}")
    return _scatter(x, weight, sizes, stride, padding, dilation, groups)


def grad_input(
    grad: Tensor,
    input_shape: Sequence[int],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """The gradient of `convolution` by its input, mod 2^64: aten.convolution_backward's first.

    Args:
        grad: int64 [batch, out, *output size], the gradient by the convolution's output.
        input_shape: the input's, [batch, in, *size].
        weight: int64 [out, in / groups, *kernel].
        stride: as in `convolution`; padding, dilation and groups too.
        padding: zeros on both sides.
        dilation: distance of the kernel's taps.
        groups: as in `convolution`.

    Returns:
        int64 of shape input_shape, contiguous.
    """
    return _scatter(grad, weight, input_shape[2:], stride, padding, dilation, groups)


def multiply(a: Grid, b: Grid, c: Grid, *, accumulate: bool = False) -> None:
    """C = A B, or C += A B, for every matrix of the batch."""
    _check(a.tensor, b.tensor, c.tensor)
    m, n, k = _size(a.rows), _size(b.cols), _size(a.cols)
    batch = _size(c.batch)
    if 0 in (m, n, k, batch):
        if not accumulate:
            c.view().zero_()
        return
    if a.tensor.device.type != "cpu":
        total = limbs.matmul(a.dense(), b.dense()).view(c.view().shape)
        c.view().add_(total) if accumulate else c.view().copy_(total)
        return
    tables = [_offsets(axis) for grid in (a, b, c) for axis in (grid.batch, grid.rows, grid.cols)]
    places = [table.data_ptr() for table in tables]
    _kernels().multiply(
        batch, m, n, k,
        a.tensor.data_ptr() + 8 * a.start, *places[0:3],
        b.tensor.data_ptr() + 8 * b.start, *places[3:6],
        c.tensor.data_ptr() + 8 * c.start, *places[6:9],
        -1 if accumulate else 0, _workspace(),
    )  # fmt: skip


# ---- the geometry of a convolution ----


def _windows(
    x: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Axis, Axis, Axis, Axis, Axis]:
    """Groups, channels, taps, images and places of the windows of a padded input."""
    step, channels = x.stride(), weight.shape[1]
    taps = tuple((k, d * s) for k, d, s in zip(weight.shape[2:], dilation, step[2:], strict=True))
    places = tuple((n, t * s) for n, t, s in zip(sizes, stride, step[2:], strict=True))
    group = ((groups, channels * step[1]),)
    return group, ((channels, step[1]),), taps, ((x.shape[0], step[0]),), places


def _channels(y: Tensor, groups: int) -> tuple[Axis, Axis, Axis]:
    """Groups, channels within one, and all the rest, of a tensor [batch, channels, *size]."""
    step, channels = y.stride(), y.shape[1] // groups
    rest = ((y.shape[0], step[0]), *zip(y.shape[2:], step[2:], strict=True))
    return ((groups, channels * step[1]),), ((channels, step[1]),), rest


def _filters(weight: Tensor, groups: int) -> tuple[Axis, Axis, Axis]:
    """Groups, filters within one, and taps, of a weight [filters, channels, *kernel]."""
    step, filters = weight.stride(), weight.shape[0] // groups
    taps = tuple(zip(weight.shape[1:], step[1:], strict=True))
    return ((groups, filters * step[0]),), ((filters, step[0]),), taps


class _Phase(NamedTuple):
    """Every stride-th place of the output from `place` on, along one dimension.

    These places, and no others, see the taps `tap`, `tap + tap_step`, ... of the turned kernel,
    and they read the input from `source` on, `source_step` further for each tap.
    """

    place: int
    places: int
    tap: int
    taps: int
    tap_step: int
    source: int
    source_step: int


def _phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    """Output place h gets input q by tap k where h + padding = stride q + dilation k."""
    found = []
    for h in range(min(stride, size)):
        taps = [k for k in range(kernel) if (h + padding - k * dilation) % stride == 0]
        tap_step = taps[1] - taps[0] if len(taps) > 1 else 1
        last = taps[-1] if taps else 0
        found.append(
            _Phase(
                place=h,
                places=len(range(h, size, stride)),
                tap=kernel - 1 - last,
                taps=len(taps),
                tap_step=tap_step,
                source=(h + padding - last * dilation) // stride,
                source_step=tap_step * dilation // stride,
            )
        )
    return found


def _scatter(
    x: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The transpose of a convolution: [batch, in, *] and [in, out / groups, *] to [batch, out, *].

    With a stride, an output place meets only some of the taps: the places that meet the same taps
    (a phase) are one product, and no zero is put between the inputs.
    """
    filters = weight.shape[1]
    _check_channels(x.shape[1], weight.shape[0], weight.shape[0], groups)
    kernel = weight.shape[2:]
    phases = [_phases(*of) for of in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    margins = []
    for dimension, size in zip(phases, x.shape[2:], strict=True):
        used = [p for p in dimension if p.taps]
        ends = [p.source + p.places + (p.taps - 1) * p.source_step for p in used]
        before = max([0, *(-p.source for p in used)])
        margins.append((before, max([0, *(end - size for end in ends)])))
    x = _padded(x, margins)
    turned = weight.flip(tuple(range(2, weight.ndim)))
    out = x.new_empty(x.shape[0], filters * groups, *sizes)
    channels = x.shape[1] // groups
    xs, ws, cs = x.stride(), turned.stride(), out.stride()
    for several in product(*phases):
        dims = range(len(several))
        multiply(
            Grid(
                turned,
                ((groups, channels * ws[0]),),
                ((filters, ws[1]),),
                ((channels, ws[0]), *((several[d].taps, several[d].tap_step * ws[2 + d]) for d in dims)),
                sum(several[d].tap * ws[2 + d] for d in dims),
            ),
            Grid(
                x,
                ((groups, channels * xs[1]),),
                ((channels, xs[1]), *((several[d].taps, several[d].source_step * xs[2 + d]) for d in dims)),
                ((x.shape[0], xs[0]), *((several[d].places, xs[2 + d]) for d in dims)),
                sum((several[d].source + margins[d][0]) * xs[2 + d] for d in dims if several[d].taps),
            ),
            Grid(
                out,
                ((groups, filters * cs[1]),),
                ((filters, cs[1]),),
                ((x.shape[0], cs[0]), *((several[d].places, stride[d] * cs[2 + d]) for d in dims)),
                sum(several[d].place * cs[2 + d] for d in dims),
            ),
        )  # fmt: skip
    return out


def _padded(x: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
    if not any(map(any, margins)):
        return x
    return pad(x, [side for margin in reversed(margins) for side in margin])


# ---- between tensors and kernels ----


@cache
def _kernels() -> ModuleType:
    """Compiled, or read from numba's cache, at the first product: not at import."""
    from fedmpi.spdz import kernels

    return kernels


class _Scratch(threading.local):
    """Each thread's memory for packed blocks: new pages for every product would cost more."""

    words: Tensor | None = None


_scratch = _Scratch()


def _workspace() -> int:
    if _scratch.words is None:
        _scratch.words = torch.empty(_kernels().WORKSPACE, dtype=torch.int64)
    return _scratch.words.data_ptr()


def _offsets(axis: Axis) -> Tensor:
    """Where each place along an axis lies, in words, row-major over its dimensions."""
    return _short_offsets(axis) if _size(axis) <= 4096 else _table(axis)


def _table(axis: Axis) -> Tensor:
    table = torch.zeros(1, dtype=torch.int64)
    for size, stride in axis:
        table = (table[:, None] + torch.arange(size) * stride).view(-1)
    return table


_short_offsets = lru_cache(maxsize=512)(_table)


def _batch_axis(t: Tensor, batch: tuple[int, ...]) -> Axis:
    """The leading dimensions of t, broadcast to a batch."""
    if not batch:
        return ()
    return tuple(zip(batch, t.expand(*batch, *t.shape[-2:]).stride(), strict=False))


def _size(axis: Axis) -> int:
    return prod(size for size, _ in axis)


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


def _check(*tensors: Tensor) -> None:
    for t in tensors:
        if t.dtype != torch.int64:
            raise TypeError(f"the ring is int64, not {t.dtype}")
        if t.device != tensors[0].device:
            raise ValueError(f"operands on {tensors[0].device} and {t.device}")


def _check_channels(have: int, expected: int, filters: int, groups: int) -> None:
    if have != expected or groups < 1 or filters % groups:
        raise ValueError(
            f"{have} channels, and a weight for {expected} with {filters} filters in {groups} groups"
        )
