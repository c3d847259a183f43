"""Smooth functions of a secret in two openings, whatever their shape: Fourier series.

A wave of a sum is a sum of products of waves. So if the angle is opened under a mask, c = x + r,
and the dealer, who knows r, deals the waves of the mask,

    cos k x = cos k c cos k r + sin k c sin k r,      sin k x = sin k c cos k r - cos k c sin k r

are linear in what the parties hold, and a whole series of K waves costs one opening of one word per
element, and a truncation. The ring itself is the circle: an angle is a share times a number, mod
2^64, and the mask is uniform.

Sources: Zheng, Zhang, Wang, Wang, Lin, "Secure Softmax/Sigmoid for Machine-learning Computation"
(ACSAC 2023), section 4, for the series of a secret; Huybrechs, "On the Fourier extension of
nonperiodic functions" (SIAM J. Numer. Anal. 47, 2010), section 3: on an interval that is shorter
than the period, the least-squares series of a smooth function converges geometrically, whether it
is periodic or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch

from fedmpi.spdz.protocols.operators import _deal_truncated, _truncated, _two, define
from fedmpi.spdz.secret import Opened, Secret
from fedmpi.spdz.turn import DealerTurn, PartyTurn

Tensor = torch.Tensor

WAVE_BITS = 28
"""Fractional bits of a wave that all see, and of a dealt one: their product stays below 2^62 while
the coefficients of a series add up to less than 2^5.
"""
_DEGREE = 23
_SAMPLES = 1000


def circle(angle: Tensor, waves: int, odd: bool = False) -> Tensor:
    """cos k t and sin k t for k = 1 ... waves, where t = 2 pi angle / 2^64; or for odd k.

    All parties must find the same bits, on whatever machine: additions and multiplications of
    float64, one operator each, are the same everywhere; torch.sin and fused operators are not.

    Args:
        angle: int64.
        waves: how many.
        odd: for k = 1, 3, 5 ... instead.

    Returns:
        float64, (2, waves, *shape of the angle).
    """
    quarter = 1 << 62
    t = torch.stack([angle + quarter, angle]).to(torch.float64).mul_(math.tau * 2.0**-64)
    square = t * t
    first = torch.full_like(t, 1 / math.factorial(_DEGREE) * (-1) ** (_DEGREE // 2))
    for n in range(_DEGREE - 2, 0, -2):
        first.mul_(square).add_((-1) ** (n // 2) / math.factorial(n))
    first.mul_(t)
    found = torch.empty(2, waves, *angle.shape, dtype=torch.float64)
    found[:, 0] = first
    # sin (k + s) t = 2 cos s t sin k t - sin (k - s) t, where s = 1, or 2 for odd waves.
    if odd:
        twice = 4 * (first[0] * first[0]) - 2
        before = torch.stack([first[0], -first[1]])
    else:
        twice = 2 * first[0]
        before = torch.stack([torch.ones_like(first[0]), torch.zeros_like(first[1])])
    for k in range(1, waves):
        torch.mul(found[:, k - 1], twice, out=found[:, k])
        found[:, k] -= before
        before = found[:, k - 1]
    return found


def _fixed(values: Tensor) -> Tensor:
    return values.mul(2.0**WAVE_BITS).round_().to(torch.int64)


class Series:
    """A function as a constant and waves of a period.

    Args:
        function: of a float64 tensor.
        low: the least value where it has to be right.
        high: the greatest one.
        period: of the first wave, longer than from low to high.
        waves: how many.
        odd: only the first, third, fifth ... wave of the period.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        low: float,
        high: float,
        period: float,
        waves: int,
        odd: bool = False,
    ) -> None:
        self.function = function
        self.low = low
        self.high = high
        self.period = period
        self.waves = waves
        self.odd = odd

    @cached_property
    def coefficients(self) -> tuple[float, Tensor, Tensor]:
        """The constant, those of the cosines, and those of the sines: by least squares."""
        node = (torch.arange(_SAMPLES, dtype=torch.float64) + 0.5) * (math.pi / _SAMPLES)
        x = (self.low + self.high) / 2 + (self.high - self.low) / 2 * torch.cos(node)
        k = torch.arange(1, self.waves + 1, dtype=torch.float64)
        if self.odd:
            k = 2 * k - 1
        angle = (math.tau / self.period) * x[:, None] * k
        basis = torch.cat([torch.ones_like(x)[:, None], torch.cos(angle), torch.sin(angle)], 1)
        # Directions in which the samples say little would only make the coefficients large.
        found = torch.linalg.pinv(basis, rtol=1e-7) @ self.function(x)
        return float(found[0]), found[1 : self.waves + 1], found[self.waves + 1 :]


class _Wave(Series):
    """A sine or a cosine itself: right everywhere."""

    def __init__(self, cosine: float, sine: float) -> None:
        super().__init__(torch.sin, -math.pi, math.pi, math.tau, 1)
        ends = (
            torch.tensor([cosine], dtype=torch.float64),
            torch.tensor([sine], dtype=torch.float64),
        )
        self.coefficients = 0.0, *ends


SERIES: dict[str, Series] = {"sin": _Wave(0, 1), "cos": _Wave(1, 0)}
"""By name, as operators name them."""


def _angle(x: Tensor, bits: int, period: float) -> Tensor:
    """The part of a period, of 2^64."""
    return x * round(2.0 ** (64 - bits) / period)


def _party_series(turn: PartyTurn, name: str, x: Tensor, bits: int, out: int) -> tuple[Tensor, ...]:
    series = SERIES[name]
    c = turn.open(turn.draw(x.shape).add_(_angle(x, bits, series.period)))
    seen = _fixed(circle(c, series.waves, series.odd))
    z = seen.mul_(turn.dealt(seen.shape)).sum((0, 1))
    if turn.first:
        z += round(series.coefficients[0] * 2.0 ** (2 * WAVE_BITS))
    return _truncated(turn, z.add_(turn.draw(z.shape)), 2 * WAVE_BITS - out)


def _dealer_series(
    turn: DealerTurn, name: str, x: Tensor, bits: int, out: int
) -> tuple[Tensor, ...]:
    series = SERIES[name]
    cos, sin = circle(turn.draw(x.shape), series.waves, series.odd)
    shape = (series.waves, *[1] * x.dim())
    a, b = (those.view(shape) for those in series.coefficients[1:])
    turn.deal(_fixed(torch.stack([a * cos - b * sin, a * sin + b * cos])))
    return _deal_truncated(turn, turn.draw(x.shape), 2 * WAVE_BITS - out)


_series = define(
    "series(str name, Tensor x, int bits, int out, int group) -> (Tensor, Tensor)",
    lambda name, x, bits, out: _two(x, x.shape),
    _party_series,
    _dealer_series,
)
"""A function of x, which has so many fractional bits; the result has `out` of them. Also what was
opened for the truncation of the result, as `truncate` gives it."""


def evaluate(name: str, x: Secret, out: int) -> Secret:
    """A function of SERIES, of a secret within its interval.

    Args:
        name: of the series.
        x: where.
        out: fractional bits of the result.
    """
    share, c = x.operate(_series, name, x.share, x.bits, out)
    return x.new(share, out, opened=Opened(c, 2 * WAVE_BITS - out))
