"""Convolutions and their gradients in Z_2^64, with the semantics of aten.convolution.

Each is one product of matrices whose rows and columns are read from the image by strides (`grid`);
a transposed convolution with a stride is one product for each phase of the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from fedmpi.spdz.ring.grid import Axis, Grid, multiply


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
    for phase in product(*phases):
        taps = tuple((p.taps, p.tap_step * s) for p, s in zip(phase, ws[2:], strict=True))
        met = tuple((p.taps, p.source_step * s) for p, s in zip(phase, xs[2:], strict=True))
        sources = tuple((p.places, s) for p, s in zip(phase, xs[2:], strict=True))
        places = tuple(
            (p.places, step * s) for p, step, s in zip(phase, stride, cs[2:], strict=True)
        )
        multiply(
            Grid(
                turned,
                ((groups, channels * ws[0]),),
                ((filters, ws[1]),),
                ((channels, ws[0]), *taps),
                sum(p.tap * s for p, s in zip(phase, ws[2:], strict=True)),
            ),
            Grid(
                x,
                ((groups, channels * xs[1]),),
                ((channels, xs[1]), *met),
                ((x.shape[0], xs[0]), *sources),
                sum(
                    (p.source + before) * s
                    for p, (before, _), s in zip(phase, margins, xs[2:], strict=True)
                ),
            ),
            Grid(
                out,
                ((groups, filters * cs[1]),),
                ((filters, cs[1]),),
                ((x.shape[0], cs[0]), *places),
                sum(p.place * s for p, s in zip(phase, cs[2:], strict=True)),
            ),
        )
    return out


def _padded(x: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
    if not any(map(any, margins)):
        return x
    return pad(x, [side for margin in reversed(margins) for side in margin])


def _check_channels(have: int, expected: int, filters: int, groups: int) -> None:
    if have != expected or groups < 1 or filters % groups:
        raise ValueError(
            f"{have} channels, but a weight for {expected}, "
            f"with {filters} filters in {groups} groups"
        )
