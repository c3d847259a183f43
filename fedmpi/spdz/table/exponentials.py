"""Exponentials, and what is made of them."""

from __future__ import annotations

import math

import torch

from fedmpi.spdz.protocols.doubling import LOWEST, power_of_two
from fedmpi.spdz.table.lift import handles, lift, real

aten = torch.ops.aten

_HIGHEST = 20
"""Exponents of two stay below this, and are right to 1e-5."""


def power_of(base_log2: float, x: torch.Tensor, highest: int = _HIGHEST) -> torch.Tensor:
    """2^(base_log2 x), and 0 where that is less than 2^-17.

    Args:
        base_log2: a public number, not 0.
        x: for base_log2 x < highest.
        highest: less of it is less work.
    """
    secret, dtype = real(x)
    y = lift(power_of_two(secret, base_log2, highest, secret.bits), dtype)
    edge = (LOWEST + 0.125) / base_log2
    return (x > edge if base_log2 > 0 else x < edge) * y


@handles(aten.exp.default)
def exp(x: torch.Tensor) -> torch.Tensor:
    """e^x for x < 13.8: error below 2 units and 1e-5 of the result."""
    return power_of(math.log2(math.e), x)


def exp_of_negative(x: torch.Tensor) -> torch.Tensor:
    """e^x for x < 0.6."""
    return power_of(math.log2(math.e), x, 1)
