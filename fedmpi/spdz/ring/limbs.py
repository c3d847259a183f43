"""The ring product by limbs: exact on any device that multiplies float64 matrices, as GPUs do.

A word is cut into three signed limbs of 22, 22 and 20 bits. Products of limbs are below 2^42 in
size, so a sum of 2048 of them is exact in float64's 53 bits. Of the nine products of limbs, the six
of weight below 2^64 are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 22
TERMS = 2048
"""How many products of limbs a float64 sum holds exactly: 2^(53 - 2 (22 - 1))."""


def split(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 limbs with words = l0 + 2^22 l1 + 2^44 l2 mod 2^64, each at most 2^21 in size."""
    found = []
    for _ in range(3):
        limb = (words << (64 - BITS)) >> (64 - BITS)  # the low 22 bits with their sign
        found.append(limb.to(torch.float64))
        words = (words - limb) >> BITS
    return found[0], found[1], found[2]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b mod 2^64 for int64 [..., m, k] and [..., k, n], on their device."""
    total = torch.zeros((), dtype=torch.int64, device=a.device)
    for start in range(0, a.shape[-1] or 1, TERMS):  # an empty sum has a shape too
        left = split(a[..., start : start + TERMS])
        right = split(b[..., start : start + TERMS, :])
        for i in range(3):
            for j in range(3 - i):
                part = torch.matmul(left[i], right[j]).to(torch.int64)
                total = total + (part << (BITS * (i + j)))
    return total
