"""The greatest, the smallest, and their order.

Of equal values the first is taken for the index, as PyTorch does; in sort, topk, kthvalue and
median it may be any of them. The index of an extreme stays secret and is worked out only if used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.table.lift import handles, secret_of
from fedmpi.spdz.table.secret_index import Places
from fedmpi.spdz.table.sorting import Sorting
from fedmpi.spdz.table.tournament import Tournament

aten = torch.ops.aten

Tensor = torch.Tensor


def _number(x: Tensor) -> Tensor:
    """Bits count as whole numbers."""
    return x.to(torch.int64) if x.dtype == torch.bool else x


def _lined_up(x: Tensor, dim: int | None) -> Tensor:
    """The dimension as the last one; None: all elements in a row."""
    if dim is None or not x.dim():
        return x.reshape(-1)
    return x.movedim(dim, -1)


def _refuse_empty(x: Tensor, players: Tensor) -> None:
    if not players.shape[-1]:
        raise UsageError(f"{x!r} has no elements: none of them is the greatest or the smallest")


def _extreme(sign: int, x: Tensor, dim: int | None, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Value and index of the greatest (sign 1) or the smallest (sign -1)."""
    players = _lined_up(x, dim)
    _refuse_empty(x, players)
    found = Tournament(_number(players if sign > 0 else -_number(players)))
    value = (found.winner if sign > 0 else -found.winner).to(x.dtype)
    if keepdim:
        value = value.reshape([1] * x.dim()) if dim is None else value.unsqueeze(dim)

    def index() -> Tensor:
        return found.label(torch.arange(found.size)).reshape(value.shape)

    place = dim if dim is None or not x.dim() else dim % x.dim()
    return value, Places(secret_of(value), found, place, keepdim, index).tensor()


def _of_all(sign: int, x: Tensor) -> Tensor:
    return _extreme(sign, x, None, False)[0]


def _in_dim(sign: int, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(sign, x, dim, keepdim)


def _index(sign: int, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _extreme(sign, x, dim, keepdim)[1]


def _in_dims(sign: int, x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    if not x.dim():
        return x.clone()
    dims = sorted(d % x.dim() for d in dim) or list(range(x.dim()))
    others = [d for d in range(x.dim()) if d not in dims]
    players = x.permute(*others, *dims).flatten(len(others))
    value = _extreme(sign, players, -1, False)[0]
    return (
        value.reshape([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else value
    )


for _name, _sign in (("max", 1), ("min", -1)):
    handles(getattr(aten, _name).default)(partial(_of_all, _sign))
    handles(getattr(aten, _name).dim)(partial(_in_dim, _sign))
    handles(getattr(aten, f"arg{_name}").default)(partial(_index, _sign))
    handles(getattr(aten, f"a{_name}").default)(partial(_in_dims, _sign))


@handles(aten.aminmax.default)
def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Both in one tournament."""
    both = torch.stack([-_number(x), _number(x)])
    place = list(range(1, both.dim())) if dim is None else [dim + 1 if dim >= 0 else dim]
    low, high = _in_dims(1, both, place, keepdim).unbind()
    return (-low).to(x.dtype), high.to(x.dtype)


@handles(aten.isnan.default, aten.isinf.default)
def never(x: Tensor) -> Tensor:
    """No secret is NaN or infinite."""
    return torch.zeros(x.shape, dtype=torch.bool)


# ---- order -------------------------------------------------------------------------------------


def _sorted(x: Tensor, dim: int, descending: bool, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Those from one place in the order to another."""
    players = _number(_lined_up(x, dim))
    found = _Part(Sorting(players if descending else -players, last), first)
    values = found.sorting.values[..., first:]
    ordered = (values if descending else -values).to(x.dtype)
    dim = dim % x.dim() if x.dim() else 0
    ordered = ordered.movedim(-1, dim) if x.dim() else ordered.reshape(())

    def index() -> Tensor:
        labels = found.sorting.label(torch.arange(found.sorting.size))[..., first:]
        return labels.movedim(-1, dim) if x.dim() else labels.reshape(())

    return ordered, Places(secret_of(ordered), found, dim, True, index).tensor()


class _Part:
    """A choice of what comes late in the order.

    Args:
        sorting: up to the last one.
        first: how many at the beginning were not chosen.
    """

    def __init__(self, sorting: Sorting, first: int) -> None:
        self.sorting = sorting
        self.first = first

    def back(self, grad: Tensor) -> Tensor:
        """As `Choice`."""
        return self.sorting.back(torch.nn.functional.pad(grad, (self.first, 0)))


@handles(aten.sort.default)
def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """All in order."""
    n = x.shape[dim] if x.dim() else 1
    return _sorted(x, dim, descending, 0, n)


@handles(aten.sort.stable)
def stable_sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """As `sort`."""
    if stable:
        raise UsageError(f"{x!r} cannot be sorted with stable=True: leave that out")
    return sort(x, dim, descending)


@handles(aten.topk.default)
def topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[Tensor, Tensor]:
    """The k greatest, in order."""
    return _sorted(x, dim, largest, 0, k)


def _one(x: Tensor, place: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """The one at that place from the smallest."""
    value, index = _sorted(x, dim, False, place, place + 1)
    if keepdim or not x.dim():
        return value, index
    places = secret_of(index)
    assert isinstance(places, Places)
    value = value.squeeze(dim)
    kept = partial(index.__class__.squeeze, index, dim)
    return value, Places(
        secret_of(value), places.choice, places.dim, False, lambda: kept().clone()
    ).tensor()


@handles(aten.kthvalue.default)
def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The k-th smallest."""
    return _one(x, k - 1, dim, keepdim)


@handles(aten.median.dim)
def median_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The one in the middle; the lower of two."""
    return _one(x, ((x.shape[dim] if x.dim() else 1) - 1) // 2, dim, keepdim)


@handles(aten.median.default)
def median(x: Tensor) -> Tensor:
    """Of all elements."""
    return median_dim(x.reshape(-1), 0)[0]
