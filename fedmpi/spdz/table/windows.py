"""Windows that slide over an image: as views of it, and their sum back onto it.

Both are linear and local. With `dims` spatial dimensions the windows of [..., *sizes] are
[..., *counts, *kernel]; everything here is ordinary PyTorch code, on public tensors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fedmpi.errors import UsageError

aten = torch.ops.aten

Sizes = Sequence[int]


class Windows(NamedTuple):
    """How windows lie over an image; one number for each spatial dimension.

    Attributes:
        sizes: of the image.
        kernel: size of a window.
        stride: from one window to the next.
        padding: on both sides of the image.
        dilation: from one place of a window to the next.
        counts: of windows.
    """

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def over(
        cls,
        sizes: Sizes,
        kernel: Sizes,
        stride: Sizes = (),
        padding: Sizes = (0,),
        dilation: Sizes = (1,),
        ceil_mode: bool = False,
    ) -> Windows:
        """From a pooling operator's arguments, where one number may stand for all dimensions."""
        dims = len(sizes)

        def each(numbers: Sizes) -> tuple[int, ...]:
            return tuple(numbers) if len(numbers) == dims else tuple(numbers) * dims

        kernel, padding, dilation = each(kernel), each(padding), each(dilation)
        stride = each(stride) if len(stride) else kernel
        counts = tuple(
            _count(*numbers, ceil_mode)
            for numbers in zip(sizes, kernel, stride, padding, dilation, strict=True)
        )
        if min(counts) < 1:
            raise UsageError(f"windows of {list(kernel)} do not fit into {list(sizes)}")
        return cls(tuple(sizes), kernel, stride, padding, dilation, counts)

    @property
    def spans(self) -> tuple[int, ...]:
        """From the first to the last place of a window."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the image: a last window may reach beyond `padding`."""
        reach = (
            (c - 1) * s + n for c, s, n in zip(self.counts, self.stride, self.spans, strict=True)
        )
        return tuple(
            max(r - n - p, p) for r, n, p in zip(reach, self.sizes, self.padding, strict=True)
        )

    def pads(self) -> list[int]:
        """As `F.pad` wants them."""
        pairs = zip(reversed(self.padding), reversed(self.after), strict=True)
        return [n for pair in pairs for n in pair]

    def padded(self, x: torch.Tensor, value: float = 0) -> torch.Tensor:
        """The image with what the windows see around it."""
        return F.pad(x, self.pads(), value=value) if any(self.pads()) else x

    def of(self, padded: torch.Tensor) -> torch.Tensor:
        """The windows of a padded image: a view."""
        dims, rank = len(self.sizes), padded.dim()
        for dim in range(dims):
            padded = padded.unfold(rank - dims + dim, self.spans[dim], self.stride[dim])
            padded = padded[..., :: self.dilation[dim]]
        return padded

    def back(self, windows: torch.Tensor) -> torch.Tensor:
        """The sum of all windows, each at its place, cut down to the image."""
        dims = len(self.sizes)
        rank = windows.dim() - dims
        lead = rank - dims
        for dim in reversed(range(dims)):
            span = self.spans[dim]
            if self.dilation[dim] > 1:
                wide = [*windows.shape[:-1], span]
                windows = aten.slice_backward(windows, wide, -1, 0, span, self.dilation[dim])
            sizes = list(windows.shape[:-1])
            sizes[lead + dim] = self.sizes[dim] + self.padding[dim] + self.after[dim]
            windows = aten.unfold_backward(windows, sizes, lead + dim, span, self.stride[dim])
        for dim in range(dims):
            windows = windows.narrow(lead + dim, self.padding[dim], self.sizes[dim])
        return windows


def _count(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    free = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A window that would begin behind the image is none.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count
