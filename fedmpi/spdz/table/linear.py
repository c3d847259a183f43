"""Linear operators: every party does with its share what is to be done with the value."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import group_of, handles, lift, secret_of
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SharedTensor, secure

aten = torch.ops.aten

_WHOLE_VIEWS = (
    aten.view.default, aten._unsafe_view.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten._reshape_alias.default,
)  # fmt: skip
"""They show all elements of what they look at."""

_VIEWS = (
    aten.expand.default, aten.select.int, aten.slice.Tensor, aten.diagonal.default,
    aten.unfold.default,
)  # fmt: skip

_MANY_VIEWS = (
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
    aten.unsafe_split.Tensor, aten.unsafe_chunk.default, aten.unsafe_split_with_sizes.default,
)  # fmt: skip

_LOCAL = (
    aten.neg.default, aten.flip.default, aten.roll.default, aten.repeat.default,
    aten.tril.default, aten.triu.default, aten.trace.default, aten.diag_embed.default,
    aten.slice_backward.default, aten.select_backward.default, aten.diagonal_backward.default,
    aten.zeros_like.default, aten.new_zeros.default,
    aten.rot90.default, aten.channel_shuffle.default, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.unfold_backward.default, aten.repeat_interleave.self_int,
)  # fmt: skip
"""New memory; tensors among their other arguments are public (positions)."""

_SUMS = (aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default)


def _public_positions(group: Any, value: Any) -> Any:
    """Positions that are here go to the parties."""
    if isinstance(value, torch.Tensor) and not isinstance(value, SharedTensor | PointerTensor):
        return group.public(value)
    return value


_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)


def _view(func: OpOverload, whole: bool, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    secret = secret_of(x)

    def look(at: PointerTensor) -> Any:
        if func in _RESHAPES and at is not secret.share:
            # A mask need not lie in memory as the shares do.
            reshaped: Any = at.reshape(args[0])
            return reshaped
        return call(func, (at, *args), kwargs)

    return lift(secret.viewed(look, whole), x.dtype)


@handles(aten.as_strided.default)
def _as_strided(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A view of the shares' memory, which says nothing about that of their mask."""
    secret = secret_of(x)
    share = call(aten.as_strided.default, (secret.share, *args), kwargs)
    return lift(secret.new(share, base=secret), x.dtype)


def _many(func: OpOverload, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Several views at once; each has its own place in what masks show."""
    secret = secret_of(x)
    shares = call(func, (secret.share, *args), kwargs)
    found = []
    for k, share in enumerate(shares):

        def look(of: PointerTensor, k: int = k) -> PointerTensor:
            return call(func, (of, *args), kwargs)[k]

        part = Secret(share, secret.bits, secret.group, base=secret, view=look)
        found.append(lift(part, x.dtype))
    return type(shares)(found) if isinstance(shares, tuple) else found


def _local(func: OpOverload, x: Any, *args: Any, **kwargs: Any) -> Any:
    group = group_of((x, args))
    kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "layout", "device")}
    args = tree_map(lambda a: _public_positions(group, a), args)
    return lift(secret_of(x).local(func, *args, **kwargs), x.dtype)


def _sum(func: OpOverload, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    dtype = kwargs.pop("dtype", None)
    whole = not x.dtype.is_floating_point
    wanted = dtype or (torch.int64 if whole else x.dtype)
    return lift(secret_of(x).local(func, *args, **kwargs), wanted)


for _func in _WHOLE_VIEWS:
    handles(_func)(partial(_view, _func, True))
for _func in _VIEWS:
    handles(_func)(partial(_view, _func, False))
for _func in _MANY_VIEWS:
    handles(_func)(partial(_many, _func))
for _func in _LOCAL:
    handles(_func)(partial(_local, _func))
for _func in _SUMS:
    handles(_func)(partial(_sum, _func))


def _view_in_place(in_place: OpOverload, view: OpOverload, x: torch.Tensor, *args: Any) -> Any:
    """What changes a tensor's shape in place: it stands for a view from here on."""
    secret = secret_of(secure(view)(x, *args))
    with torch._C._DisableTorchDispatch():  # shape and strides are known here too
        in_place(x, *args)
    assert isinstance(x, SharedTensor)
    x.secret = secret
    return x


for _func, _viewed in {
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}.items():
    handles(_func)(partial(_view_in_place, _func, _viewed))


@handles(aten.alias.default, aten.detach.default, aten.lift_fresh.default)
def _same(x: torch.Tensor) -> torch.Tensor:
    return lift(secret_of(x), x.dtype)


@handles(aten.clone.default, aten.contiguous.default)
def _clone(x: torch.Tensor, *, memory_format: Any = None) -> torch.Tensor:
    secret = secret_of(x)
    copy = secret.new(call(aten.clone.default, (secret.share,), {"memory_format": memory_format}))
    return lift(copy.same_as(secret), x.dtype)


def joined(func: OpOverload, tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """cat or stack, of secrets and of public tensors."""
    group = group_of(tensors)
    bits = max(secret_of(t).bits for t in tensors if isinstance(t, SharedTensor))
    dtype = torch.result_type(tensors[0], tensors[0])
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    secrets = [
        secret_of(t).with_bits(bits) if isinstance(t, SharedTensor) else as_secret(t, group, bits)
        for t in tensors
    ]
    share = call(func, ([s.share for s in secrets], *args), kwargs)
    return lift(secrets[0].new(share, bits), dtype)


for _func in (aten.cat.default, aten.stack.default):
    handles(_func)(partial(joined, _func))


def as_secret(tensor: torch.Tensor, group: Any, bits: int) -> Secret:
    """A public tensor as shares: the first party has the values, the others zeros."""
    from fedmpi.spdz.table.lift import public

    there = public(group, tensor, bits)
    zeros = call(aten.zeros_like.default, (there,), {})
    return Secret(zeros, bits, group).plus_public(there, bits)


@handles(aten.constant_pad_nd.default)
def _pad(x: torch.Tensor, pad: Any, value: float = 0) -> torch.Tensor:
    padded = lift(secret_of(x).local(aten.constant_pad_nd.default, pad, 0), x.dtype)
    if not value:
        return padded
    inside = torch.nn.functional.pad(torch.ones(x.shape), pad)
    return padded + (1 - inside) * value
