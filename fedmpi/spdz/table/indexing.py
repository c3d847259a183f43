"""Elements by their index: a public index is local, a secret one a product with ones and zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import group_of, handles, lift, secret_of
from fedmpi.spdz.table.linear import as_secret
from fedmpi.spdz.table.secret_index import places_of
from fedmpi.tensors.pointer import call
from fedmpi.tensors.shared import SharedTensor

aten = torch.ops.aten

Tensor = torch.Tensor


def one_hot(index: Tensor, n: int) -> Tensor:
    """A secret index as bits: [..., n], 1 where it says."""
    return index.unsqueeze(-1) == torch.arange(n)


def _is_secret(index: Any) -> bool:
    return isinstance(index, SharedTensor)


def _positions(index: Tensor, n: int) -> Tensor:
    """Within bounds, and not negative; what PyTorch would find out on the parties."""
    if index.numel() and not (-n <= int(index.min()) and int(index.max()) < n):
        raise IndexError(
            f"an index from {int(index.min())} to {int(index.max())} is out of bounds for "
            f"dimension with size {n}"
        )
    return torch.where(index < 0, index + n, index)


def _local(func: Any, x: Tensor, *args: Any) -> Tensor:
    """Each party with its own share; tensors among the arguments are public positions."""
    group = group_of((x,))

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(one) for one in value]
        return group.public(value) if isinstance(value, Tensor) else value

    return lift(secret_of(x).local(func, *map(there, args)), x.dtype)


def _aligned(x: Tensor, values: Tensor) -> tuple[Secret, Secret]:
    """Both as secrets of one scale, at least one of them being shared."""
    group = group_of((x, values))
    bits = max(secret_of(t).bits for t in (x, values) if isinstance(t, SharedTensor))
    ours, theirs = (
        secret_of(t).with_bits(bits) if isinstance(t, SharedTensor) else as_secret(t, group, bits)
        for t in (x, values)
    )
    return ours, theirs


# ---- reading -----------------------------------------------------------------------------------


@handles(aten.index_select.default)
def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Slices by a list of positions."""
    if not _is_secret(index):
        return _local(aten.index_select.default, x, dim, _positions(index, x.shape[dim]))
    chosen = one_hot(index.reshape(-1), x.shape[dim])
    rows = x.movedim(dim, 0)
    found = _ones_times(chosen, rows.reshape(rows.shape[0], -1))
    return found.view(-1, *rows.shape[1:]).movedim(0, dim)


def _ones_times(chosen: Tensor, rows: Tensor) -> Tensor:
    """A matrix of secret bits times one of values, which may be public."""
    return (chosen.to(torch.int64) @ rows).to(rows.dtype)


@handles(aten.embedding.default)
def embedding(
    weight: Tensor, index: Tensor, padding: int = -1, by_count: bool = False, sparse: bool = False
) -> Tensor:
    """Rows of a table."""
    return index_select(weight, 0, index.reshape(-1)).view(*index.shape, weight.shape[1])


@handles(aten.embedding_dense_backward.default)
def embedding_backward(
    grad: Tensor, index: Tensor, rows: int, padding: int, by_count: bool
) -> Tensor:
    """The sum of the gradients of each row."""
    if by_count:
        raise UsageError(
            "an embedding with scale_grad_by_freq=True has no secure form: leave it out"
        )
    grad = grad.reshape(-1, grad.shape[-1])
    index = index.reshape(-1)
    if _is_secret(index):
        found = _ones_times(one_hot(index, rows).t(), grad)
        if padding < 0:
            return found
        kept = torch.ones(rows, 1, dtype=torch.int64)
        kept[padding] = 0
        return found * kept
    counted = (index != padding).nonzero().view(-1)
    return index_add(
        grad.new_zeros(rows, grad.shape[-1]), 0, index[counted], grad.index_select(0, counted)
    )


@handles(aten.gather.default)
def gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """One element for each index."""
    if not x.dim():
        return x.expand(index.shape).clone()
    if not _is_secret(index):
        return _local(aten.gather.default, x, dim, _positions(index, x.shape[dim]))
    for d, n in enumerate(index.shape):
        if d != dim % x.dim():
            x = x.narrow(d, 0, n)
    chosen = one_hot(index.movedim(dim, -1), x.shape[dim])
    found = _ones_times(chosen, x.movedim(dim, -1).unsqueeze(-1)).squeeze(-1)
    return found.movedim(-1, dim)


@handles(aten.take.default)
def take(x: Tensor, index: Tensor) -> Tensor:
    """From all elements in a row."""
    return index_select(x.reshape(-1), 0, index.reshape(-1)).view(index.shape)


def _without_masks(x: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Public masks as positions, and positions that are in bounds.

    Raises:
        UsageError: a secret mask.
    """
    found: list[Tensor | None] = []
    for index in indices:
        if index is None:
            found.append(None)
            continue
        if _is_secret(index) and index.dtype == torch.bool:
            return refuse_mask(x)
        if index.dtype in (torch.bool, torch.uint8) and not _is_secret(index):
            found += list(index.nonzero().unbind(1))
        else:
            n = x.shape[len(found)]
            found.append(index if _is_secret(index) else _positions(index, n))
    return found


@handles(aten.index.Tensor)
def index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """x[...] by tensors of positions; a secret one stands alone."""
    places = _without_masks(x, indices)
    if not any(map(_is_secret, places)):
        return _local(aten.index.Tensor, x, places)
    dims = [d for d, place in enumerate(places) if place is not None]
    if len(dims) > 1:
        raise UsageError("a secret index together with another one has no secure form: index twice")
    [dim] = dims
    place = places[dim]
    assert place is not None
    found = index_select(x, dim, place.reshape(-1))
    return found.view(*x.shape[:dim], *place.shape, *x.shape[dim + 1 :])


@handles(aten.masked_select.default, aten.nonzero.default)
def refuse_mask(x: Tensor, *_: Any) -> Any:
    """The number of results would tell."""
    if len(_) == 1 and isinstance(x, SharedTensor) and not _is_secret(_[0]):
        return index(x, [_[0]])
    raise UsageError(
        f"{x!r} selected by a secret mask: the shape of the result would reveal how many are "
        "chosen; torch.where or a product with the mask keeps the shape"
    )


# ---- writing -----------------------------------------------------------------------------------


@handles(aten.index_add.default)
def index_add(x: Tensor, dim: int, places: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Adds slices at positions."""
    source = source * alpha if alpha != 1 else source
    if _is_secret(places):
        rows = source.movedim(dim, 0)
        chosen = one_hot(places, x.shape[dim]).t()
        added = _ones_times(chosen, rows.reshape(rows.shape[0], -1))
        return x + added.view(-1, *rows.shape[1:]).movedim(0, dim)
    ours, theirs = _aligned(x, source)
    there = ours.group.public(_positions(places, x.shape[dim]))
    share = call(aten.index_add.default, (ours.share, dim, there, theirs.share), {})
    return lift(ours.new(share), x.dtype)


@handles(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Writes or adds values at positions."""
    if any(_is_secret(one) and one.dtype == torch.bool for one in indices if one is not None):
        if len(indices) == 1 and values.numel() == 1 and indices[0] is not None:
            mask = indices[0][(...,) + (None,) * (x.dim() - indices[0].dim())]
            return torch.where(mask, x + values if accumulate else values.reshape(()), x)
        refuse_mask(x)
    if any(map(_is_secret, indices)):
        return _put_by_secret(x, indices, values, accumulate)
    ours, theirs = _aligned(x, values)
    there = [one if one is None else ours.group.public(one) for one in _without_masks(x, indices)]
    share = call(aten.index_put.default, (ours.share, there, theirs.share, accumulate), {})
    return lift(ours.new(share), x.dtype)


def _put_by_secret(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool
) -> Tensor:
    dims = [d for d, place in enumerate(indices) if place is not None]
    if len(dims) > 1 or not accumulate:
        raise UsageError(
            "writing at a secret index has no secure form: add a product with its one-hot bits"
        )
    [dim] = dims
    place = indices[dim]
    assert place is not None
    shape = (*x.shape[:dim], *place.shape, *x.shape[dim + 1 :])
    rows = values.expand(shape).flatten(dim, dim + place.dim() - 1)
    return index_add(x, dim, place.reshape(-1), rows)


def _scattered(func: Any, x: Tensor, dim: int, places: Tensor, source: Tensor | float) -> Tensor:
    if not isinstance(source, Tensor):
        source = torch.full(places.shape, source, dtype=x.dtype)
    n = x.shape[dim] if x.dim() else 1
    if _is_secret(places):
        return _scattered_by_secret(func, x, dim, places, source)
    ours, theirs = _aligned(x, source)
    there = ours.group.public(_positions(places, n))
    share = call(func, (ours.share, dim, there, theirs.share), {})
    return lift(ours.new(share), x.dtype)


def _scattered_by_secret(func: Any, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """The gradient of a maximum goes back through the choice; any other index is taken apart."""
    places = places_of(index)
    if not x.dim():
        return source.reshape(()) + (x if func is aten.scatter_add.default else 0)
    dim = dim % x.dim()
    adds = func is aten.scatter_add.default
    empty = isinstance(x, SharedTensor) is False and not bool(x.any())
    if places and places.dim == dim and places.kept and (adds or empty):
        found = places.choice.back(source.movedim(dim, -1)).movedim(-1, dim)
        return (found if empty else x + found).to(x.dtype)
    if not adds and not (empty and index.shape[dim] == 1):
        raise UsageError("scatter at a secret index has no secure form: use scatter_add")
    if any(n != m for d, (n, m) in enumerate(zip(x.shape, index.shape, strict=True)) if d != dim):
        raise UsageError(
            f"scatter_add at a secret index of shape {list(index.shape)} into {list(x.shape)} has "
            "no secure form: only the indexed dimension may differ"
        )
    source = source[tuple(slice(n) for n in index.shape)]
    chosen = one_hot(index.movedim(dim, -1), x.shape[dim]).transpose(-1, -2)
    added = _ones_times(chosen, source.movedim(dim, -1).unsqueeze(-1)).squeeze(-1)
    return x + added.movedim(-1, dim)


@handles(aten.scatter.src, aten.scatter.value)
def scatter(x: Tensor, dim: int, places: Tensor, source: Tensor | float) -> Tensor:
    """Writes one element for each index."""
    return _scattered(aten.scatter.src, x, dim, places, source)


@handles(aten.scatter_add.default)
def scatter_add(x: Tensor, dim: int, places: Tensor, source: Tensor) -> Tensor:
    """Adds one element for each index."""
    return _scattered(aten.scatter_add.default, x, dim, places, source)


@handles(aten.index_copy.default)
def index_copy(x: Tensor, dim: int, places: Tensor, source: Tensor) -> Tensor:
    """Writes slices at positions."""
    ours, theirs = _aligned(x, source)
    there = ours.group.public(_positions(places, x.shape[dim]))
    share = call(aten.index_copy.default, (ours.share, dim, there, theirs.share), {})
    return lift(ours.new(share), x.dtype)


@handles(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(x: Tensor, dim: int, places: Tensor, value: Any) -> Tensor:
    """Writes a number into slices."""
    mask = torch.zeros(x.shape[dim], dtype=torch.bool)
    mask[places] = True
    mask = mask.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    return x.masked_fill(mask, value)


@handles(aten.put.default)
def put(x: Tensor, places: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Writes among all elements in a row."""
    flat, rows = x.reshape(-1), source.reshape(-1)
    write = index_add if accumulate else index_copy
    return write(flat, 0, places.reshape(-1), rows).view(x.shape)


@handles(aten.masked_scatter.default)
def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Writes elements one after another where a public mask is true."""
    if _is_secret(mask):
        refuse_mask(x)
    places = mask.expand(x.shape).reshape(-1).nonzero().view(-1)
    return index_copy(x.reshape(-1), 0, places, source.reshape(-1)[: len(places)]).view(x.shape)
