"""Reciprocals, roots and logarithms: of m between 1 and 2 by a series, of the power of two exactly.

x is a whole number X of units 2^-f, and k the place of X's first one. M = X 2^(47-k) is exact, and
m = M / 2^47. Tables of the digits of k (see `protocols/magnitude.py`) bring the power of two back:

    1 / x = 2^(f-k) / m        sqrt(x) = 2^((k-f)/2) sqrt(m)        log(x) = (k-f) log(2) + log(m)

So the error is relative to the result, with a unit or two of the last place: large and small values
need no care. Where a function has a pole or ends, what comes out is a number without meaning.

Source: Catrina, Saxena, "Secure Computation with Fixed-Point Numbers" (FC 2010), section 3.4, for
the normalisation.
"""

from __future__ import annotations

import math

import torch

from fedmpi.spdz.protocols.magnitude import Magnitude
from fedmpi.spdz.protocols.series import SERIES, Series, evaluate
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import handles, lift, real

aten = torch.ops.aten

_TOP = 47
"""Where the first one of M stands: with it, what is multiplied stays below 2^62."""
_FINE = 28
"""Fractional bits of a root of m."""
_COARSE = 21
"""Of a reciprocal of m, which is multiplied by up to 2^40 before it is cut."""
_LOW = range(8)
_HIGH = range(0, 64, 8)

# The bits of a negative value -2^k look like those of 2^k - 1: m may be 2.
SERIES |= {
    "reciprocal": Series(torch.reciprocal, 0.99, 2.01, 2.0, 9),
    "sqrt": Series(torch.sqrt, 0.99, 2.01, 2.0, 10),
    "rsqrt": Series(torch.rsqrt, 0.99, 2.01, 2.0, 10),
    "log": Series(torch.log, 0.99, 2.01, 2.0, 8),
}


def _scaled(magnitude: Magnitude) -> tuple[Secret, Secret, Secret]:
    """m > 0, and the powers 2^(7 - k mod 8) and +-2^(40 - 8 (k div 8)) that x was multiplied by."""
    great = [1 << (_TOP - 7 - k) if k < _TOP else 0 for k in _HIGH]
    by_low, by_high = magnitude.pick(
        [1 << (7 - k) for k in _LOW], [*great, *(-n for n in great)], 0
    )
    x = magnitude.x
    m = x.new(x.share, 0).same_as(x).times(by_high).times(by_low)
    return m.new(m.share, _TOP), by_low, by_high


@handles(aten.reciprocal.default)
def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x for 2^-f <= |x| < 2^31: error below 2 units and 5e-7 of the result."""
    secret, dtype = real(x)
    m, by_low, by_high = _scaled(Magnitude(secret))
    y = evaluate("reciprocal", m, _COARSE).times(by_high)
    y = y.new(y.share, _COARSE + _TOP - secret.bits)
    y = y.cut(y.bits - secret.bits - 7).times(by_low).cut(7)
    return lift(y, dtype)


def _root(x: torch.Tensor, name: str, sign: int) -> torch.Tensor:
    """2^(sign (k - f) / 2) times a function of m."""
    secret, dtype = real(x)
    magnitude = Magnitude(secret)
    odd = secret.bits % 2
    low = [round(2 ** (sign * (k - odd) / 2 + _FINE - 4)) for k in _LOW]
    # Whole powers of two: 2^(k/2) or, to be divided by 2^20 again, 2^(20 - k/2).
    high = [2 ** (k // 2 if sign > 0 else 20 - k // 2) if k < _TOP else 0 for k in _HIGH]
    m, _, _ = _scaled(magnitude)
    by_low, by_high = magnitude.pick(low, high, _FINE - 4)
    y = evaluate(name, m, _FINE).times(by_low).times(by_high)
    shift = sign * (secret.bits // 2) + (0 if sign > 0 else 20)
    y = y.new(y.share, _FINE + shift)
    return lift(y.cut(y.bits - secret.bits), dtype)


@handles(aten.sqrt.default)
def sqrt(x: torch.Tensor) -> torch.Tensor:
    """The root for 2^-f <= x < 2^31, and 0.006 of 0: error below 2 units and 1e-7 of the result."""
    return _root(x, "sqrt", 1)


@handles(aten.rsqrt.default)
def rsqrt(x: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) for 2^-f <= x < 2^31: error below 2 units and 1e-7 of the result."""
    return _root(x, "rsqrt", -1)


@handles(aten.log.default)
def log(x: torch.Tensor) -> torch.Tensor:
    """The natural logarithm for 2^-f <= x < 2^31: error below 3 units."""
    secret, dtype = real(x)
    magnitude = Magnitude(secret)
    m, _, _ = _scaled(magnitude)
    unit = math.log(2) * 2.0**secret.bits
    by_place = magnitude.sum_of(
        [round(k * unit) for k in _LOW],
        [round((k - secret.bits) * unit) for k in _HIGH],
        secret.bits,
    )
    y = evaluate("log", m, secret.bits).plus(by_place)
    return lift(y, dtype)
