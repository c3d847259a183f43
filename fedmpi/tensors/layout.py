"""What the owner knows of a tensor elsewhere: all but its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """Shape, strides, place in its memory, dtype. One object for all equal ones.

    `eq=False`: two of them are compared and hashed by identity, which is what makes the
    look-up of a known call cheap. Make them with `layout_of` or `layout`.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def at(self, n: int) -> Layout:
        """The layout for a batch of n rows: this one, whatever n is."""
        return self

    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


_known: dict[tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype], Layout] = {}


def layout(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, dtype: torch.dtype
) -> Layout:
    """The one layout of these properties."""
    key = (shape, stride, offset, dtype)
    found = _known.get(key)
    if found is None:
        found = _known[key] = Layout(*key)
    return found


def layout_of(tensor: torch.Tensor) -> Layout:
    """The layout of a tensor."""
    return layout(
        tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()), tensor.dtype
    )
