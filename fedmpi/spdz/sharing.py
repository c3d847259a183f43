"""share(): from values here or on a worker to shares on the parties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

import torch
from torch import nn

import fedmpi.spdz.table.everything  # noqa: F401 - operators on shared tensors
from fedmpi.errors import UsageError
from fedmpi.spdz.fixed_point import BITS, MOST_BITS, encode
from fedmpi.spdz.group import Group, group_of_workers
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import bits_of, lift
from fedmpi.tensors.modules import with_tensors
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.shared import SharedTensor

M = TypeVar("M", bound=nn.Module)


Shareable = torch.Tensor | Sequence[torch.Tensor]


@overload
def share(what: M, *workers: RemoteWorker, bits: int = BITS, dim: int = 0) -> M: ...
@overload
def share(
    what: Shareable, *workers: RemoteWorker, bits: int = BITS, dim: int = 0
) -> SharedTensor: ...
def share(
    what: nn.Module | Shareable, *workers: RemoteWorker, bits: int = BITS, dim: int = 0
) -> nn.Module | SharedTensor:
    """Shares a tensor, or all tensors of a module, among workers.

    Args:
        what: values that are here; a pointer to a worker's data, which that worker then shares
            without anybody else seeing it; what is shared already, among these or other workers,
            and gets other shares, with its own fractional bits; several of these, which are
            joined; or a module. The result of a module is a copy of it whose parameters and
            buffers are shared.
        workers: the parties, at least two.
        bits: fractional bits of the fixed-point representation.
        dim: along which several tensors are joined: 0 if each worker contributes rows.

    Returns:
        What was shared; a leaf that requires grad if `what` does.

    Raises:
        UsageError: values that are too large or NaN, fewer than two parties, or too many bits.
    """
    if not 1 <= bits <= MOST_BITS:
        raise UsageError(f"bits = {bits}: expected 1 to {MOST_BITS}")
    for worker in workers:
        if not isinstance(worker, RemoteWorker):
            raise UsageError(f"{worker!r} is no worker: share(what, alice, bob, ...)")
        if worker.link.crew is not workers[0].link.crew:
            raise UsageError(f"{workers[0]!r} and {worker!r} belong to two jobs")
    group = group_of_workers(workers)
    if isinstance(what, nn.Module):
        return with_tensors(what, lambda tensor: _share(tensor, group, bits))
    if isinstance(what, torch.Tensor):
        shared = _share(what, group, bits)
        shared.requires_grad_(what.requires_grad)
        return shared
    if not what:
        raise UsageError("share() was given an empty list of tensors")
    joined = torch.cat([_share(tensor, group, bits) for tensor in what], dim)
    assert isinstance(joined, SharedTensor)
    return joined


def _share(tensor: torch.Tensor, group: Group, bits: int) -> SharedTensor:
    if isinstance(tensor, SharedTensor):
        secret: Secret = tensor.secret
        if secret.group is group:
            return tensor.refresh()
        if secret.group.crew is not group.crew:
            raise UsageError(f"{tensor!r} belongs to another job than ranks {group.rank}")
        again = group.share_again(secret.share, secret.group)
        return lift(Secret(again, secret.bits, group), tensor.dtype)
    scale = bits_of(tensor.dtype, bits)
    if isinstance(tensor, PointerTensor):
        shares = group.share_object(tensor, scale)
    else:
        shares = group.share(encode(tensor, scale))
    return lift(Secret(shares, scale, group), tensor.dtype)
