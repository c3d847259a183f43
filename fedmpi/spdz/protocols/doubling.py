"""Powers of two of a secret in two openings.

The exponent, in units of u, is opened under a mask, c = x + r mod P. With whole parts c_i, r_i and
fractions c_f, r_f

    2^(u x) = 2^(u ((c_i - r_i) mod P)) 2^(-u r_f) 2^(u c_f)

without any carry from the fractions to the whole parts: if one is missing, the difference of the
fractions is negative instead. The dealer deals the product of the first two for each of the P
values that c_i may take, and the parties use the one that it has: a look-up in a shifted table,
where the window of P u exponents is as short as the results that fixed point can hold. The larger
u, the shorter the table, and the last factor takes u bits of its precision.

Source: Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky, "On the Power of Correlated
Randomness in Secure Computation" (TCC 2013), section 3, for the table.
"""

from __future__ import annotations

import math

import torch

from fedmpi.spdz.protocols.operators import _deal_truncated, _truncated, _two, define
from fedmpi.spdz.secret import Opened, Secret
from fedmpi.spdz.turn import DealerTurn, PartyTurn

Tensor = torch.Tensor

LOWEST = -17
"""Powers below 2^LOWEST are nothing."""
_DEGREE = 11


class _Window:
    """Which exponents are told apart, and how exactly.

    Args:
        highest: the greatest exponent.

    Attributes:
        unit: u, a power of two.
        first: the least whole part.
        size: P.
        table: fractional bits of what is dealt.
        factor: of what multiplies it: the product stays below 2^62.
    """

    def __init__(self, highest: int) -> None:
        self.unit = 4 if highest > 8 else 8
        self.first = LOWEST // self.unit
        # Without a carry a whole part is too large by one.
        beyond = (highest - 1) // self.unit + 2
        self.size = beyond - self.first
        # Exponents outside of the window come back inside: those too must stay below 2^62.
        both = 61 - beyond * self.unit
        self.factor = (both - self.unit) // 2
        self.table = both - self.factor


def _parts(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Whole part and fraction, the latter of 2^32, of angle size / 2^64."""
    scaled = ((angle >> 32) & 0xFFFFFFFF) * size
    return scaled >> 32, scaled & 0xFFFFFFFF


def _power(fraction: Tensor, unit: int) -> Tensor:
    """2^(unit fraction / 2^32) by additions and multiplications: all parties find the same bits."""
    exponent = fraction * unit
    rest = (exponent & 0xFFFFFFFF).to(torch.float64).mul_(2.0**-32)
    found = torch.full_like(rest, math.log(2) ** _DEGREE / math.factorial(_DEGREE))
    for n in range(_DEGREE - 1, -1, -1):
        found.mul_(rest).add_(math.log(2) ** n / math.factorial(n))
    return found.mul_(torch.bitwise_left_shift(1, exponent >> 32))


def _fixed(values: Tensor, bits: int) -> Tensor:
    return values.mul(2.0**bits).round_().to(torch.int64)


def _angle(x: Tensor, bits: int, factor: float, window: _Window) -> Tensor:
    return x * round(factor * 2.0 ** (64 - bits) / (window.unit * window.size))


def _party_power(
    turn: PartyTurn, x: Tensor, bits: int, factor: float, highest: int, out: int
) -> tuple[Tensor, ...]:
    window = _Window(highest)
    c = turn.open(turn.draw(x.shape).add_(_angle(x, bits, factor, window)))
    whole, fraction = _parts(c, window.size)
    row = turn.dealt((window.size, *x.shape)).gather(0, whole.unsqueeze(0)).squeeze(0)
    z = row.mul_(_fixed(_power(fraction, window.unit), window.factor)).add_(turn.draw(x.shape))
    return _truncated(turn, z, window.table + window.factor - out)


def _dealer_power(
    turn: DealerTurn, x: Tensor, bits: int, factor: float, highest: int, out: int
) -> tuple[Tensor, ...]:
    window = _Window(highest)
    whole, fraction = _parts(turn.draw(x.shape), window.size)
    exponents = torch.arange(window.size)
    exponents += (exponents < window.first + window.size).logical_not() * -window.size
    powers = torch.exp2((window.unit * exponents + window.table).to(torch.float64))
    c = torch.arange(window.size).view(-1, *[1] * x.dim())
    table = powers[(c - whole).remainder_(window.size)]
    table.mul_(torch.exp2(fraction * (-window.unit * 2.0**-32))).round_()
    turn.deal(table.to(torch.int64))
    return _deal_truncated(turn, turn.draw(x.shape), window.table + window.factor - out)


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
    window = _Window(highest)
    share, c = x.operate(_power_of_two, x.share, x.bits, float(factor), highest, out)
    return x.new(share, out, opened=Opened(c, window.table + window.factor - out))
