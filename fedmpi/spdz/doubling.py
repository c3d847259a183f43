"""Powers of two of a secret in two openings.

The exponent is opened under a mask, c = x + r mod P. With whole parts c_i, r_i and fractions c_f, r_f

    2^x = 2^((c_i - r_i) mod P) 2^(-r_f) 2^(c_f)

without any carry from the fractions to the whole parts: if one is missing, the difference of the
fractions is negative instead. The dealer deals the product of the first two for each of the P values
that c_i may take, and the parties use the one that it has: a look-up in a shifted table, where the
window of P exponents is as short as the results that fixed point can hold.

Source: Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky, "On the Power of Correlated
Randomness in Secure Computation" (TCC 2013), section 3, for the table.
"""

from __future__ import annotations

import math

import torch

from fedmpi.spdz.operators import _deal_truncated, _truncated, _two, define
from fedmpi.spdz.secret import Opened, Secret
from fedmpi.spdz.turn import DealerTurn, PartyTurn

Tensor = torch.Tensor

LOWEST = -17
"""Powers below 2^LOWEST are nothing."""
_DEGREE = 11


def _parts(angle: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Whole part and fraction, the latter float64, of angle window / 2^64."""
    scaled = ((angle >> 32) & 0xFFFFFFFF) * window
    return scaled >> 32, (scaled & 0xFFFFFFFF).to(torch.float64).mul_(2.0**-32)


def _power(fraction: Tensor) -> Tensor:
    """2^fraction by additions and multiplications, so that all parties find the same bits."""
    found = torch.full_like(fraction, math.log(2) ** _DEGREE / math.factorial(_DEGREE))
    for n in range(_DEGREE - 1, -1, -1):
        found.mul_(fraction).add_(math.log(2) ** n / math.factorial(n))
    return found


def _precision(highest: int) -> tuple[int, int]:
    """Fractional bits of the table and of what multiplies it: the product stays below 2^62."""
    both = 60 - highest
    return both - both // 2, both // 2


def _fixed(values: Tensor, bits: int) -> Tensor:
    return values.mul(2.0**bits).round_().to(torch.int64)


def _party_power(
    turn: PartyTurn, x: Tensor, bits: int, factor: float, highest: int, out: int
) -> tuple[Tensor, ...]:
    window = highest - LOWEST + 1
    angle = x * round(factor * 2.0 ** (64 - bits) / window)
    whole, fraction = _parts(turn.open(turn.draw(x.shape).add_(angle)), window)
    table, multiplier = _precision(highest)
    row = turn.dealt((window, *x.shape)).gather(0, whole.unsqueeze(0)).squeeze(0)
    z = row.mul_(_fixed(_power(fraction), multiplier)).add_(turn.draw(x.shape))
    return _truncated(turn, z, table + multiplier - out)


def _dealer_power(
    turn: DealerTurn, x: Tensor, bits: int, factor: float, highest: int, out: int
) -> tuple[Tensor, ...]:
    window = highest - LOWEST + 1
    whole, fraction = _parts(turn.draw(x.shape), window)
    table, multiplier = _precision(highest)
    # As large as an entry gets; shifted to the right it is the others.
    largest = _fixed(torch.exp2(-fraction), table + highest)
    c = torch.arange(window).view(window, *[1] * x.dim())
    exponent = (c - whole).remainder_(window)
    exponent -= (exponent > highest).to(torch.int64) * window
    turn.deal(largest >> (highest - exponent))
    return _deal_truncated(turn, turn.draw(x.shape), table + multiplier - out)


_power_of_two = define(
    "power_of_two(Tensor x, int bits, float factor, int highest, int out, int group) "
    "-> (Tensor, Tensor)",
    lambda x, bits, factor, highest, out: _two(x, x.shape),
    _party_power,
    _dealer_power,
)
"""2^(factor x), x having so many fractional bits and the result `out`; also what was opened for its
truncation."""


def power_of_two(x: Secret, factor: float, highest: int, out: int) -> Secret:
    """2^(factor x), for LOWEST < factor x < highest: outside, the exponent is off by a window.

    Args:
        x: the exponent.
        factor: a public number.
        highest: the greatest exponent; the shorter the window, the less there is to deal.
        out: fractional bits of the result.
    """
    share, c = x.operate(_power_of_two, x.share, x.bits, float(factor), highest, out)
    return x.new(share, out, opened=Opened(c, sum(_precision(highest)) - out))
