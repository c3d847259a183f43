"""A function of secrets beside the same function of plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.shared import SharedTensor

UNIT = 2.0**-16


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def revealed(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.reveal() if isinstance(tensor, SharedTensor) else tensor
    return found.detach()


def exact(values: torch.Tensor) -> torch.Tensor:
    """In fixed point, so that sharing them changes nothing."""
    return values if not values.is_floating_point() else (values.double() / UNIT).round() * UNIT


def worst(
    workers: Sequence[RemoteWorker],
    function: Callable[[Any], Any],
    x: torch.Tensor,
    relative: float = 0.0,
) -> float:
    """The largest error in units of 2^-16, beyond what is relative to the result."""
    x = exact(x)
    want = function(x)
    error = (revealed(function(share(x, *workers))) - want).abs() - relative * want.abs()
    return float(error.max()) / UNIT


def compare(
    workers: Sequence[RemoteWorker],
    function: Callable[..., Any],
    *operands: torch.Tensor,
    error: float = 5e-4,
    gradients: float | None = None,
) -> None:
    """Values and gradients agree; these have an error of their own if one is given."""
    operands = tuple(map(exact, operands))
    plain = [x.clone().requires_grad_(x.is_floating_point()) for x in operands]
    shared = [share(x, *workers).requires_grad_(x.is_floating_point()) for x in operands]
    want, found = function(*plain), function(*shared)
    weights = torch.linspace(0.5, 1.5, want.numel(), dtype=want.dtype).view(want.shape)
    (want * weights).sum().backward()
    (found * weights).sum().backward()
    assert torch.allclose(revealed(found), want.detach(), rtol=0, atol=error)
    for ours, theirs in zip(shared, plain, strict=True):
        if theirs.grad is not None:
            assert torch.allclose(revealed(ours.grad), theirs.grad, rtol=0, atol=gradients or error)
