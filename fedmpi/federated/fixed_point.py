"""The exact sum: updates in 64-bit fixed point, so that the order of adding is nothing.

A client's update enters as round(p * delta * 2^32) in int64, where its weight p is at
most 1 and all weights of a round add up to 1. Integer addition is associative, hence the
sum has the same bits on one process or on 64 ranks, over a star or a tree.
"""

from __future__ import annotations

import torch

RESOLUTION = 32
"""Fractional bits."""
LIMIT = 2.0**30
"""Largest |delta|: below it no sum of a round can leave int64."""


def add_update(
    total: torch.Tensor,
    local: list[torch.Tensor],
    start: list[torch.Tensor],
    weight: float,
) -> str | None:
    """Adds weight * (local - start) into the sum, unless a value of it is not usable.

    Args:
        total: int64 [n], n elements over all vectors; changed in place.
        local: a client's state after training, vectors of any real dtype.
        start: the state that it started from, same layout.
        weight: the client's share of the round's rows, 0 to 1.

    Returns:
        None, or why the update was left out: total is then unchanged.
    """
    deltas = _deltas(local, start)
    refusal = _refusal(deltas)
    if refusal is not None:
        return refusal
    offset = 0
    for delta in deltas:
        scaled = delta.to(torch.float64).mul_(weight * 2.0**RESOLUTION).round_()
        total[offset : offset + delta.numel()].add_(scaled.to(torch.int64))
        offset += delta.numel()
    return None


def unusable(local: list[torch.Tensor], start: list[torch.Tensor]) -> str | None:
    """Why `add_update` would leave an update out; None if it would not."""
    return _refusal(_deltas(local, start))


def _deltas(local: list[torch.Tensor], start: list[torch.Tensor]) -> list[torch.Tensor]:
    return [
        torch.sub(a, b) if a.is_floating_point() else a.to(torch.float64) - b.to(torch.float64)
        for a, b in zip(local, start, strict=True)
    ]


def _refusal(deltas: list[torch.Tensor]) -> str | None:
    for delta in deltas:
        # The largest magnitude is NaN if any value is: one pass finds all that is unusable.
        largest = float(torch.linalg.vector_norm(delta, ord=float("inf"))) if delta.numel() else 0.0
        if largest != largest:
            return "its update contains NaN"
        if largest == float("inf"):
            return "its update is infinite"
        if largest >= LIMIT:
            return f"its update reaches {largest:.3g}, beyond {LIMIT:.3g}"
    return None


def apply_sum(state: list[torch.Tensor], total: torch.Tensor, included: float) -> None:
    """The new global state: state + total / included, in place.

    Args:
        state: the owner's vectors. Integers (step counters) are rounded to the nearest,
            booleans become what the weighted majority says.
        total: int64 [n], the exact sum of the weighted updates.
        included: the share of the round's weight that is in the sum; 1 unless a client
            was left out.
    """
    offset = 0
    for vector in state:
        part = total[offset : offset + vector.numel()].to(torch.float64)
        moved = vector.to(torch.float64).add_(part.mul_(2.0**-RESOLUTION / included))
        if vector.dtype == torch.bool:
            vector.copy_(moved >= 0.5)
        elif vector.is_floating_point():
            vector.copy_(moved)
        else:
            vector.copy_(moved.round_())
        offset += vector.numel()
