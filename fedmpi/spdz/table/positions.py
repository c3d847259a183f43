"""Elements taken by public positions, one list for each dimension, and their sum back.

Padding by reflection, enlarging and windows of varying size are of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from fedmpi.spdz.table.lift import handles

aten = torch.ops.aten

Positions = dict[int, torch.Tensor]
"""By dimension, negative ones from the last: where each place takes its element from."""


def taken(x: torch.Tensor, positions: Positions) -> torch.Tensor:
    """The elements at these positions."""
    for dim, places in positions.items():
        x = x.index_select(dim, places)
    return x


def put_back(grad: torch.Tensor, positions: Positions, shape: Sequence[int]) -> torch.Tensor:
    """The gradient of `taken`: what was taken several times gets the sum."""
    for dim, places in positions.items():
        sizes = list(grad.shape)
        sizes[dim] = shape[dim]
        grad = grad.new_zeros(sizes).index_add(dim, places, grad)
    return grad


def _of_padding(mode: str, shape: Sequence[int], pads: Sequence[int]) -> Positions:
    found = {}
    for k in range(len(pads) // 2):
        dim, pair = -1 - k, tuple(pads[2 * k : 2 * k + 2])
        places = torch.arange(shape[dim], dtype=torch.float64).view(1, 1, -1)
        found[dim] = F.pad(places, pair, mode).view(-1).to(torch.int64)
    return found


def _pad(mode: str, x: torch.Tensor, pads: Sequence[int]) -> torch.Tensor:
    return taken(x, _of_padding(mode, x.shape, pads))


def _pad_backward(
    mode: str, grad: torch.Tensor, x: torch.Tensor, pads: Sequence[int]
) -> torch.Tensor:
    return put_back(grad, _of_padding(mode, x.shape, pads), x.shape)


for _dims in (1, 2, 3):
    for _name, _mode in (("reflection", "reflect"), ("replication", "replicate")):
        handles(getattr(aten, f"{_name}_pad{_dims}d").default)(partial(_pad, _mode))
        handles(getattr(aten, f"{_name}_pad{_dims}d_backward").default)(
            partial(_pad_backward, _mode)
        )


def _of_enlarging(
    mode: str, shape: Sequence[int], sizes: Sequence[int], scales: Sequence[float | None]
) -> Positions:
    found = {}
    for k, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        dim = k - len(sizes)
        places = torch.arange(shape[dim], dtype=torch.float64).view(1, 1, -1)
        enlarge = getattr(aten, f"{mode}1d").default
        found[dim] = enlarge(places, [size], scale).view(-1).to(torch.int64)
    return found


def _enlarge(mode: str, x: torch.Tensor, sizes: Sequence[int], *scales: Any) -> torch.Tensor:
    scales = scales or (None,) * len(sizes)
    return taken(x, _of_enlarging(mode, x.shape, sizes, scales))


def _enlarge_backward(
    mode: str, grad: torch.Tensor, sizes: Sequence[int], shape: Sequence[int], *scales: Any
) -> torch.Tensor:
    scales = scales or (None,) * len(sizes)
    return put_back(grad, _of_enlarging(mode, shape, sizes, scales), shape)


for _dims in (1, 2, 3):
    for _mode in ("upsample_nearest", "_upsample_nearest_exact"):
        handles(getattr(aten, f"{_mode}{_dims}d").default)(partial(_enlarge, _mode))
        handles(getattr(aten, f"{_mode}{_dims}d_backward").default)(
            partial(_enlarge_backward, _mode)
        )
