"""Real numbers as integers of the ring: x stands as round(x * 2^f)."""

from __future__ import annotations

import torch

from fedmpi.errors import UsageError

BITS = 16
"""f, unless a tensor is shared with another one."""
MOST_BITS = 28


def largest(bits: int) -> float:
    """Values have to stay below this: a product with 1.0 must be below 2^62 before it is
    divided by 2^f.
    """
    return 2.0 ** (62 - 2 * bits)


def encode(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values as integers, int64.

    Args:
        values: real, of any dtype.
        bits: f; 0 for what is whole.

    Raises:
        UsageError: NaN, or a value that is too large.
    """
    if values.is_complex():
        raise UsageError(f"a {values.dtype} tensor cannot be shared: share its real part")
    if not values.is_floating_point():
        if values.numel() and int(values.abs().max() if values.dtype != torch.bool else 0) >> 62:
            raise UsageError("an integer beyond 2^62 cannot be shared")
        return values.to(torch.int64) << bits
    if values.numel():
        low, high = (float(end) for end in torch.aminmax(values.detach()))
        if not max(-low, high) < largest(bits):
            raise UsageError(
                f"values from {low:.6g} to {high:.6g} cannot be shared: with {bits} fractional "
                f"bits they must lie between -{largest(bits):.6g} and {largest(bits):.6g}; NaN "
                "has no place there"
            )
    return (values.detach().to(torch.float64) * 2.0**bits).round().to(torch.int64)


def decode(encoded: torch.Tensor, bits: int) -> torch.Tensor:
    """The values, float64."""
    return encoded.to(torch.float64) * 2.0**-bits
