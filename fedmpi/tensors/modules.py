"""Modules whose tensors are replaced by others, elsewhere or here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar, overload

import torch
from torch import nn

from fedmpi.tensors.pointer import PointerTensor

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


@overload
def get(what: M) -> M: ...
@overload
def get(what: torch.Tensor) -> torch.Tensor: ...
def get(what: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
    """The values of a pointer, or a copy of a module with the values of all its pointers, here."""
    if isinstance(what, nn.Module):
        return with_tensors(what, get)
    return what.get() if isinstance(what, PointerTensor) else what.clone()
