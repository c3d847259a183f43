"""Images as columns of windows, and back (F.unfold and F.fold)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmpi.spdz.table.lift import handles
from fedmpi.spdz.table.windows import Windows

aten = torch.ops.aten

Sizes = Sequence[int]


@handles(aten.im2col.default)
def im2col(
    x: torch.Tensor, kernel: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes
) -> torch.Tensor:
    """[..., C, H, W] to [..., C * places of a window, windows]."""
    windows = Windows.over(x.shape[-2:], kernel, stride, padding, dilation)
    found = windows.of(windows.padded(x))
    return found.movedim((-2, -1), (-4, -3)).flatten(-2).flatten(-4, -2)


@handles(aten.col2im.default)
def col2im(
    x: torch.Tensor, sizes: Sizes, kernel: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes
) -> torch.Tensor:
    """The sum of the windows, each at its place."""
    windows = Windows.over(sizes, kernel, stride, padding, dilation)
    apart = x.unflatten(-1, windows.counts).unflatten(-4 + 1, (-1, *windows.kernel))
    return windows.back(apart.movedim((-4, -3), (-2, -1)))
