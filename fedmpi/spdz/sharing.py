"""share(): from values here or on a worker to shares on the parties."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import torch
from torch import nn

import fedmpi.spdz.arithmetic
import fedmpi.spdz.choices
import fedmpi.spdz.convolutions
import fedmpi.spdz.extremes
import fedmpi.spdz.folding
import fedmpi.spdz.indexing
import fedmpi.spdz.linear
import fedmpi.spdz.pooling
import fedmpi.spdz.positions
import fedmpi.spdz.powers
import fedmpi.spdz.products_along  # noqa: F401 - they fill the table
from fedmpi.errors import UsageError
from fedmpi.spdz.fixed_point import BITS, MOST_BITS, encode
from fedmpi.spdz.group import Group, group_of_workers
from fedmpi.spdz.lift import bits_of, lift
from fedmpi.spdz.secret import Secret
from fedmpi.tensors.modules import with_tensors
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.shared import SharedTensor

M = TypeVar("M", bound=nn.Module)


@overload
def share(what: M, *workers: RemoteWorker, bits: int = BITS) -> M: ...
@overload
def share(what: torch.Tensor, *workers: RemoteWorker, bits: int = BITS) -> SharedTensor: ...
def share(
    what: nn.Module | torch.Tensor, *workers: RemoteWorker, bits: int = BITS
) -> nn.Module | SharedTensor:
    """Shares a tensor, or all tensors of a module, among workers.

    Args:
        what: values that are here, or a module. The result of a module is a copy of it whose
            parameters and buffers are shared.
        workers: the parties, at least two.
        bits: fractional bits of the fixed-point representation.

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
    return _share(what, group, bits).requires_grad_(what.requires_grad)


def _share(tensor: torch.Tensor, group: Group, bits: int) -> Any:
    scale = bits_of(tensor.dtype, bits)
    return lift(Secret(group.share(encode(tensor, scale)), scale, group), tensor.dtype)
