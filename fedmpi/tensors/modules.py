"""Modules whose tensors are replaced by others, elsewhere or here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar, overload

import torch
from torch import nn

from fedmpi.errors import UsageError
from fedmpi.tensors.pointer import HasLink, PointerTensor
from fedmpi.tensors.shared import SharedTensor

M = TypeVar("M", bound=nn.Module)


def with_tensors(module: M, convert: Callable[[torch.Tensor], torch.Tensor]) -> M:
    """A copy of a module in which every parameter and buffer is converted, tied ones once."""
    replaced: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        converted = convert(tensor.detach())
        replaced[id(tensor)] = (
            nn.Parameter(converted, tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else converted
        )
    # deepcopy takes what is in its memo for copied.
    return copy.deepcopy(module, replaced)


def move(module: M, worker: HasLink) -> M:
    """Moves all pointers of a module to another worker, straight.

    Returns:
        A copy of the module with the new pointers; those of the given one stand for nothing
        then. An optimiser has to be made anew.
    """
    return with_tensors(module, lambda tensor: _pointer(tensor).move(worker))


def _pointer(tensor: torch.Tensor) -> PointerTensor:
    if not isinstance(tensor, PointerTensor):
        raise UsageError("a tensor of the module is here, not on a worker: send the module first")
    return tensor


@overload
def get(what: M) -> M: ...
@overload
def get(what: torch.Tensor) -> torch.Tensor: ...
def get(what: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
    """The values of a pointer or a shared tensor, or a copy of a module with all of its, here."""
    if isinstance(what, nn.Module):
        return with_tensors(what, get)
    return what.get() if isinstance(what, PointerTensor | SharedTensor) else what.clone()
