"""Between SharedTensors and secrets: how the table of secure operators is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from fedmpi.errors import UsageError
from fedmpi.spdz.fixed_point import BITS, encode
from fedmpi.spdz.group import Group
from fedmpi.spdz.protocols.operators import encode_public
from fedmpi.spdz.secret import Secret
from fedmpi.tensors.link import Link
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SECURE, SharedTensor

F = TypeVar("F", bound=Callable[..., Any])


def handles(*operators: OpOverload) -> Callable[[F], F]:
    """Enters a function into the table; it takes the operator's arguments."""

    def enter(function: F) -> F:
        for operator in operators:
            SECURE[operator] = function
        return function

    return enter


def lift(secret: Secret, dtype: torch.dtype) -> SharedTensor:
    """A SharedTensor of a secret."""
    return SharedTensor(secret, dtype)


def secret_of(tensor: torch.Tensor) -> Secret:
    """The secret of a SharedTensor."""
    assert isinstance(tensor, SharedTensor)
    found: Secret = tensor.secret
    return found


def real(tensor: torch.Tensor) -> tuple[Secret, torch.dtype]:
    """The secret with fractional bits, and the dtype of a real function of the tensor."""
    if tensor.dtype.is_floating_point:
        return secret_of(tensor), tensor.dtype
    dtype = torch.get_default_dtype()
    return secret_of(tensor.to(dtype)), dtype


def group_of(arguments: Iterable[Any]) -> Group:
    """The one group of all SharedTensors among the arguments.

    Raises:
        UsageError: they belong to several.
    """
    shared = [a for a in tree_leaves(list(arguments)) if isinstance(a, SharedTensor)]
    group = secret_of(shared[0]).group
    for tensor in shared:
        if secret_of(tensor).group is not group:
            raise UsageError(
                f"{shared[0]!r} and {tensor!r} are shared among different parties: share both "
                "among the same workers"
            )
    return group


def bits_of(dtype: torch.dtype, default: int = BITS) -> int:
    """Fractional bits of public values of a dtype: none for whole numbers."""
    return default if dtype.is_floating_point else 0


def public(group: Group, tensor: torch.Tensor, bits: int) -> PointerTensor:
    """Public values in fixed point on the parties: from here, or what all parties have drawn.

    Raises:
        UsageError: they are on a worker, or too large.
    """
    if isinstance(tensor, PointerTensor):
        place: Any = tensor.remote.link
        if not isinstance(place, Link):  # made on all parties, or in a plan
            found: PointerTensor = call(encode_public, (tensor, bits, group.number), {})
            return found
        raise UsageError(
            f"{tensor!r} met a shared tensor: share it with the same parties, or get() it first"
        )
    return group.public(encode(tensor, bits))
