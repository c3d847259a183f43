"""Pooling: means are local sums and one factor, maxima a tournament in all windows at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.table.arithmetic import product
from fedmpi.spdz.table.lift import handles, lift, secret_of
from fedmpi.spdz.table.positions import Positions, put_back, taken
from fedmpi.spdz.table.secret_index import Places, places_of
from fedmpi.spdz.table.tournament import Tournament
from fedmpi.spdz.table.windows import Windows
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

Tensor = torch.Tensor
Sizes = Sequence[int]

_LOWEST = -(1 << 61)
"""In units, for padding: below every secret, and far enough from it and from overflow."""


def _last(dims: int) -> list[int]:
    return list(range(-dims, 0))


# ---- means -------------------------------------------------------------------------------------


def _share_of_each(windows: Windows, include_pad: bool, divisor: int | None) -> Tensor | float:
    """What the sum of each window is multiplied by."""
    if divisor:
        return 1 / divisor
    inside = torch.ones(windows.sizes, dtype=torch.float64)
    if include_pad:
        inside = torch.nn.functional.pad(
            inside, [n for p in reversed(windows.padding) for n in (p, p)], value=1.0
        )
        beyond = [a - p for a, p in zip(windows.after, windows.padding, strict=True)]
        inside = torch.nn.functional.pad(inside, [n for b in reversed(beyond) for n in (0, b)])
    else:
        inside = windows.padded(inside)
    return 1 / windows.of(inside).sum(_last(len(windows.sizes)))


def _as(x: Tensor, factor: Tensor | float) -> Tensor | float:
    return factor.to(x.dtype) if isinstance(factor, Tensor) else factor


def _avg_pool(
    dims: int,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    windows = Windows.over(x.shape[-dims:], kernel, stride, padding, (1,), ceil_mode)
    total = windows.of(windows.padded(x)).sum(_last(dims))
    return total * _as(x, _share_of_each(windows, count_include_pad, divisor_override))


def _avg_pool_backward(
    dims: int,
    grad: Tensor,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    windows = Windows.over(x.shape[-dims:], kernel, stride, padding, (1,), ceil_mode)
    each = grad * _as(grad, _share_of_each(windows, count_include_pad, divisor_override))
    each = each[(..., *[None] * dims)].expand(*each.shape, *windows.kernel)
    return windows.back(each)


for _dims in (1, 2, 3):
    if _dims > 1:
        handles(getattr(aten, f"avg_pool{_dims}d").default)(partial(_avg_pool, _dims))
        handles(getattr(aten, f"avg_pool{_dims}d_backward").default)(
            partial(_avg_pool_backward, _dims)
        )


def _bounds(size: int, count: int) -> list[tuple[int, int]]:
    """Of adaptive windows: they differ in size by one, and may overlap."""
    return [(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]


def _membership(size: int, count: int) -> Tensor:
    """Which places belong to which window: [size, count], 0 or 1."""
    found = torch.zeros(size, count, dtype=torch.int64)
    for k, (begin, end) in enumerate(_bounds(size, count)):
        found[begin:end, k] = 1
    return found


def _mapped(x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """A public matrix of whole numbers for each of the last dimensions: exact, and local."""
    for k, matrix in enumerate(maps):
        dim = k - len(maps)
        rows = x.movedim(dim, -1)
        if isinstance(x, SharedTensor):
            x = product(rows, matrix, "matmul").movedim(-1, dim)
        else:  # a gradient that all know
            x = (rows @ matrix.to(x.dtype)).movedim(-1, dim)
    return x


def _share_of_adaptive(maps: Sequence[Tensor]) -> Tensor:
    share = torch.ones((), dtype=torch.float64)
    for matrix in maps:
        share = share[..., None] / matrix.sum(0)
    return share


def _adaptive_avg_pool(dims: int, x: Tensor, counts: Sizes) -> Tensor:
    maps = [_membership(s, c) for s, c in zip(x.shape[-dims:], counts, strict=True)]
    return _mapped(x, maps) * _as(x, _share_of_adaptive(maps))


def _adaptive_avg_pool_backward(dims: int, grad: Tensor, x: Tensor) -> Tensor:
    sizes = zip(x.shape[-dims:], grad.shape[-dims:], strict=True)
    maps = [_membership(s, c) for s, c in sizes]
    return _mapped(grad * _as(grad, _share_of_adaptive(maps)), [m.t() for m in maps])


for _dims in (2, 3):
    handles(getattr(aten, f"_adaptive_avg_pool{_dims}d").default)(
        partial(_adaptive_avg_pool, _dims)
    )
    handles(getattr(aten, f"_adaptive_avg_pool{_dims}d_backward").default)(
        partial(_adaptive_avg_pool_backward, _dims)
    )


# ---- maxima ------------------------------------------------------------------------------------


class _Pooled:
    """The winners of all windows, and the way back to the image.

    Args:
        tournament: of the windows, [..., *counts, places of a window].
        windows: over what the tournament saw.
        numbers: of the places there, [*sizes].
    """

    def __init__(self, tournament: Tournament, windows: Windows, numbers: Tensor) -> None:
        self.tournament = tournament
        self.windows = windows
        self.numbers = numbers

    def back(self, grad: Tensor) -> Tensor:
        """From the windows to the image."""
        each = self.tournament.back(grad[..., None])
        return self.windows.back(each.unflatten(-1, self.windows.kernel))

    def places(self) -> Tensor:
        """The numbers of the winners."""
        numbers = self.windows.of(self.windows.padded(self.numbers))
        return self.tournament.label(numbers.flatten(-len(self.windows.sizes)))


def _numbered(sizes: Sizes) -> Tensor:
    return torch.arange(prod(sizes)).view(tuple(sizes))


def _lowest_around(windows: Windows, x: Tensor) -> Tensor:
    """The image in a frame that never wins."""
    padded = windows.padded(x)
    if padded is x:
        return x
    inside = windows.padded(torch.ones(windows.sizes, dtype=torch.int64))
    secret = secret_of(padded)
    frame = secret.group.public((1 - inside) * _LOWEST)
    return lift(secret.plus_public(frame, secret.bits), x.dtype)


def _max_pool(
    dims: int,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    dilation: Sizes = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    windows = Windows.over(x.shape[-dims:], kernel, stride, padding, dilation, ceil_mode)
    players = windows.of(_lowest_around(windows, x)).flatten(-dims)
    found = _Pooled(Tournament(players), windows, _numbered(windows.sizes))
    value = found.tournament.winner.contiguous()
    return value, Places(secret_of(value), found, None, False, found.places).tensor()


def _max_pool_backward(dims: int, grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    places = places_of(arguments[-1])
    if places is None:
        raise UsageError(
            f"the backward pass of max_pool{dims}d needs the indices that its forward pass gave"
        )
    return places.choice.back(grad)


for _dims in (2, 3):
    handles(getattr(aten, f"max_pool{_dims}d_with_indices").default)(partial(_max_pool, _dims))
    handles(getattr(aten, f"max_pool{_dims}d_with_indices_backward").default)(
        partial(_max_pool_backward, _dims)
    )


class _Adaptive:
    """As `_Pooled`, where windows of different size are filled up with their last place.

    Args:
        pooled: of the image in which every window has its own places.
        positions: where these places are in the image itself.
        sizes: of that image.
    """

    def __init__(self, pooled: _Pooled, positions: Positions, sizes: Sizes) -> None:
        self.pooled = pooled
        self.positions = positions
        self.sizes = sizes

    def back(self, grad: Tensor) -> Tensor:
        """From the windows to the image."""
        return put_back(self.pooled.back(grad), self.positions, self.sizes)


def _adaptive_max_pool(dims: int, x: Tensor, counts: Sizes) -> tuple[Tensor, Tensor]:
    sizes = x.shape[-dims:]
    kernel = [-(-s // c) for s, c in zip(sizes, counts, strict=True)]
    if all(s % c == 0 for s, c in zip(sizes, counts, strict=True)):
        return _max_pool(dims, x, kernel)
    positions: Positions = {}
    longest = []
    for k, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        bounds = _bounds(size, count)
        longest.append(max(end - begin for begin, end in bounds))
        rows = [[min(begin + j, end - 1) for j in range(longest[-1])] for begin, end in bounds]
        positions[k - dims] = torch.tensor(rows).flatten()
    value, index = _max_pool(dims, taken(x, positions), longest)
    places = places_of(index)
    assert places is not None
    assert isinstance(places.choice, _Pooled)
    pooled = places.choice
    pooled.numbers = taken(_numbered(sizes), positions)
    choice = _Adaptive(pooled, positions, x.shape)
    return value, Places(secret_of(value), choice, None, False, pooled.places).tensor()


for _dims in (2, 3):
    handles(getattr(aten, f"adaptive_max_pool{_dims}d").default)(partial(_adaptive_max_pool, _dims))
    handles(getattr(aten, f"adaptive_max_pool{_dims}d_backward").default)(
        partial(_max_pool_backward, _dims)
    )
