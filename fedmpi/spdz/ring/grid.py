"""Matrices as they lie inside tensors, and the one product of all of them, exact mod 2^64.

No BLAS multiplies 64-bit integers. On a CPU the product is a compiled kernel (`kernels`); on a GPU
it is split into limbs that float64 multiplies exactly (`limbs`). Both see an operand through its
strides alone (`Grid`): a transposed matrix, a broadcast batch, the windows of an image and the taps
of a strided transposed convolution are read where they lie, and im2col is never written out.
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache
from math import prod
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from fedmpi.spdz.ring import limbs

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


def multiply(a: Grid, b: Grid, c: Grid, *, accumulate: bool = False) -> None:
    """C = A B, or C += A B, for every matrix of the batch."""
    check(a.tensor, b.tensor, c.tensor)
    m, n, k = _size(a.rows), _size(b.cols), _size(a.cols)
    batch = _size(c.batch)
    if 0 in (m, n, k, batch):
        if not accumulate:
            c.view().zero_()
        return
    if not by_kernel(a.tensor.device):
        total = limbs.matmul(a.dense(), b.dense()).view(c.view().shape)
        c.view().add_(total) if accumulate else c.view().copy_(total)
        return
    tables = [_offsets(axis) for grid in (a, b, c) for axis in (grid.batch, grid.rows, grid.cols)]
    places = [table.data_ptr() for table in tables]
    kernels().multiply(
        batch, m, n, k,
        a.tensor.data_ptr() + 8 * a.start, *places[0:3],
        b.tensor.data_ptr() + 8 * b.start, *places[3:6],
        c.tensor.data_ptr() + 8 * c.start, *places[6:9],
        -1 if accumulate else 0, _workspace(),
    )  # fmt: skip


# ---- between tensors and kernels ----


def by_kernel(device: torch.device) -> bool:
    """Whether a device has the compiled kernels: if not, limbs."""
    return device.type == "cpu"


@cache
def kernels() -> ModuleType:
    """Compiled, or read from numba's cache, at the first product: not at import."""
    from fedmpi.spdz.ring import kernels as compiled

    return compiled


class _Scratch(threading.local):
    """Each thread's memory for packed blocks: new pages for every product would cost more."""

    words: Tensor | None = None


_scratch = _Scratch()


def _workspace() -> int:
    if _scratch.words is None:
        _scratch.words = torch.empty(kernels().WORKSPACE, dtype=torch.int64, device="cpu")
    return _scratch.words.data_ptr()


def _offsets(axis: Axis) -> Tensor:
    """Where each place along an axis lies, in words, row-major over its dimensions."""
    return _short_offsets(axis) if _size(axis) <= 4096 else _table(axis)


def _table(axis: Axis) -> Tensor:
    table = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, stride in axis:
        table = (table[:, None] + torch.arange(size, device="cpu") * stride).view(-1)
    return table


_short_offsets = lru_cache(maxsize=512)(_table)


def _size(axis: Axis) -> int:
    return prod(size for size, _ in axis)


def check(*tensors: Tensor) -> None:
    """Words of the ring, and all on one device."""
    for t in tensors:
        if t.dtype != torch.int64:
            raise TypeError(f"the ring is int64, not {t.dtype}")
        if t.device != tensors[0].device:
            raise ValueError(f"operands on {tensors[0].device} and {t.device}")
