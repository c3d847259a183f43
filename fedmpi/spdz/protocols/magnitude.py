"""Where a secret's first one stands: what scales any value to between 1 and 2, without loss.

c = x + r is open, and the parties hold r by bits, as words that are shared by exclusive or. A
subtraction with a parallel prefix (six levels) gives the bits of x, their exclusive or with the
sign those of |x| (or of |x| - 1, which is as good), another prefix of six levels fills all places
below the first one, and the place's digits are sums of these bits: seven bits with the sign, which
are opened under a mask. The dealer deals the mask's digits as unit vectors, so that every function
of the place is linear in them from then on.

Sources: Catrina, de Hoogh, "Improved Primitives for Secure Multiparty Integer Computation" (SCN
2010), section 4, for bits and prefixes; Catrina, Saxena, "Secure Computation with Fixed-Point
Numbers" (FC 2010), section 3.4, for the normalisation; Kogge, Stone, "A Parallel Algorithm for the
Efficient Solution of a General Class of Recurrence Equations" (IEEE Trans. Computers, 1973), for
the prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from operator import xor

import torch

from fedmpi.spdz.protocols.operators import define, nowhere
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.turn import DealerTurn, PartyTurn
from fedmpi.tensors.pointer import PointerTensor, call

Tensor = torch.Tensor

_STEPS = (1, 2, 4, 8, 16, 32)
_LOW, _HIGH = 8, 16
"""Values of the low digit, bits 0 to 2 of the place; of the high one, bits 3 to 5 and the sign."""


def _digit(place: int) -> int:
    """The word whose bit k is bit `place` of k, as int64."""
    word = sum(((k >> place) & 1) << k for k in range(64))
    return word - (1 << 64) if word >> 63 else word


_DIGITS = tuple(_digit(place) for place in range(6))


def _parity(x: Tensor) -> Tensor:
    for step in reversed(_STEPS):
        x = x ^ (x >> step)
    return x & 1


def _party_leading(turn: PartyTurn, c: Tensor) -> tuple[Tensor, Tensor]:
    r = turn.dealt_bits(c.shape)
    borrow = r & ~c
    same = r ^ ~c if turn.first else r.clone()
    for step in _STEPS:
        alpha, beta = turn.draw(c.shape), turn.draw(c.shape)
        ab, aa = turn.dealt_bits(c.shape), turn.dealt_bits(c.shape)
        d, e = turn.open_bits(torch.stack([same ^ alpha, borrow ^ beta])).unbind()
        borrow ^= _and(turn, d, alpha, e << step, beta << step, ab)
        same = _and(turn, d, alpha, d << step, alpha << step, aa)
    x = r ^ (borrow << 1)
    if turn.first:
        x ^= c
    sign = x >> 63
    x ^= sign
    for step in _STEPS:
        alpha = turn.draw(c.shape)
        aa = turn.dealt_bits(c.shape)
        d = turn.open_bits(x ^ alpha)
        lower = x >> step
        x = x ^ lower ^ _and(turn, d, alpha, d >> step, alpha >> step, aa)
    first_one = x ^ (x >> 1)
    digits = [_parity(first_one & word) << k for k, word in enumerate(_DIGITS)]
    word = reduce(xor, digits, sign & 64)
    mask = turn.draw(c.shape) & 127
    z = turn.open_bits((word ^ mask).to(torch.uint8)).to(torch.int64)
    return z, turn.dealt((_LOW + _HIGH, *c.shape))


def _and(turn: PartyTurn, d: Tensor, alpha: Tensor, e: Tensor, beta: Tensor, ab: Tensor) -> Tensor:
    """A share of the bits of u and v, where d = u ^ alpha and e = v ^ beta are open."""
    found = (d & beta) ^ (alpha & e) ^ ab
    return found ^ (d & e) if turn.first else found


def _dealer_leading(turn: DealerTurn, r: Tensor) -> tuple[Tensor, Tensor]:
    shape = r.shape
    turn.deal_bits(r)
    for step in _STEPS:
        alpha, beta = turn.draw_bits(shape), turn.draw_bits(shape)
        turn.deal_bits(alpha & (beta << step))
        turn.deal_bits(alpha & (alpha << step))
    for step in _STEPS:
        alpha = turn.draw_bits(shape)
        turn.deal_bits(alpha & (alpha >> step))
    mask = turn.draw_bits(shape) & 127
    low = torch.arange(_LOW).view(-1, *[1] * r.dim()) == (mask & 7)
    high = torch.arange(_HIGH).view(-1, *[1] * r.dim()) == (mask >> 3)
    turn.deal(torch.cat([low, high]).to(torch.int64))
    return nowhere(shape), nowhere((_LOW + _HIGH, *shape))


_leading = define(
    "leading(Tensor c, int group) -> (Tensor, Tensor)",
    lambda c: (c.new_empty(c.shape), c.new_empty((_LOW + _HIGH, *c.shape))),
    _party_leading,
    _dealer_leading,
)
"""The place of x's first one, where c = x + r, under a mask that all see; and the mask's digits."""


def _party_pick(
    turn: PartyTurn, z: Tensor, digits: Tensor, low: list[int], high: list[int]
) -> Tensor:
    found = []
    for table, units, at in ((low, digits[:_LOW], z & 7), (high, digits[_LOW:], z >> 3)):
        k = torch.arange(len(table)).view(-1, *[1] * z.dim())
        weights = torch.tensor(table).view(k.shape)
        found.append((units.gather(0, k ^ at) * weights).sum(0))
    return torch.stack(found)


_pick = define(
    "pick(Tensor z, Tensor digits, int[] low, int[] high, int group) -> Tensor",
    lambda z, digits, low, high: z.new_empty((2, *z.shape)),
    _party_pick,
    lambda turn, z, digits, low, high: nowhere((2, *z.shape)),
)
"""Entries of tables: of 8 for the low digit, of 16 for the high one. Linear: no message."""


class Magnitude:
    """The place k of the first one in a secret that is not 0, in units of its last bit.

    Args:
        x: any secret.
    """

    def __init__(self, x: Secret) -> None:
        self.x = x
        self.z, self.digits = x.operate(_leading, x.masked().e)

    def pick(self, low: Sequence[int], high: Sequence[int], bits: int) -> tuple[Secret, Secret]:
        """Entries of a table for k mod 8 and of one for k div 8, masked in one go.

        Args:
            low: 8 whole numbers.
            high: 8, or 16 of which the last 8 are for negative values.
            bits: how many bits of the low one are fractional.
        """
        both = self._both(low, high)
        both.masked()
        first, second = partial(_row, 0), partial(_row, 1)
        return (
            both.new(first(both.share), bits, base=both, view=first),
            both.new(second(both.share), 0, base=both, view=second),
        )

    def sum_of(self, low: Sequence[int], high: Sequence[int], bits: int) -> Secret:
        """The sum of an entry of each, where so many bits are fractional."""
        both = self._both(low, high)
        return both.new(call(torch.ops.aten.sum.dim_IntList, (both.share, [0]), {}), bits)

    def _both(self, low: Sequence[int], high: Sequence[int]) -> Secret:
        high = [*high, *high] if len(high) == _LOW else list(high)
        return self.x.new(self.x.operate(_pick, self.z, self.digits, list(low), high), 0)


def _row(k: int, both: PointerTensor) -> PointerTensor:
    found: PointerTensor = call(torch.ops.aten.select.int, (both, 0, k), {})
    return found
