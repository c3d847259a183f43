"""The sign of a secret, and what is chosen by it.

c = x + r is open, and the dealer knows r: from a truncation, or from a mask (r = -a). With 63 low
bits on each side, msb(x) = c63 xor r63 xor [c' < r']. The parties hold r by bits, as words that are
shared by exclusive or, and find the borrow with a tree of six levels: at a leaf
g = r and not c, p = not (c xor r), and a pair of neighbours becomes (g_h xor p_h g_l, p_h p_l).
In bit-reversed order a level folds the top half of a word onto its bottom half.

The sign stays in two parts: z, which is open, and a random bit rho of the dealer, msb = z xor rho.
A product with it then costs no opening beyond the other factor's mask:

    m x = z x + (1 - 2 z) rho x,        rho x = rho e + rho a     where x = e + a.
"""

from __future__ import annotations

import torch

from fedmpi.spdz.operators import define
from fedmpi.spdz.truncation import deal_truncation, share_dtype
from fedmpi.spdz.turn import DealerTurn, PartyTurn

Tensor = torch.Tensor

_TOP = -(2**63)
_WIDTHS = (32, 16, 8, 4, 2, 1)


def _low(width: int) -> int:
    return (1 << width) - 1


def interleave_order(x: Tensor) -> Tensor:
    """Bit k goes to the place whose six digits are those of k in reverse."""
    out = torch.zeros_like(x)
    for k in range(64):
        place = int(f"{k:06b}"[::-1], 2)
        out |= ((x >> k) & 1) << place
    return out


def _party_negative(turn: PartyTurn, c: Tensor) -> tuple[Tensor, Tensor]:
    shape = c.shape
    words = interleave_order(c)
    # Bit 63 stays where it is, and takes part as (g, p) = (0, 1).
    r = turn.dealt_bits(shape)
    high = r & _TOP
    low = r & ~_TOP
    g = low & ~words
    p = low ^ (~words & ~_TOP) if turn.first else low
    if turn.first:
        p = p | _TOP
    for width in _WIDTHS:
        keep = _low(width)
        alpha, beta, gamma = (turn.draw(shape) & keep for _ in range(3))
        ab, ac = turn.dealt_bits(shape) & keep, turn.dealt_bits(shape) & keep
        p_high = (p >> width) & keep
        g_high = (g >> width) & keep
        masked = torch.stack([p_high ^ alpha, (g & keep) ^ beta, (p & keep) ^ gamma])
        d, e, f = turn.open_bits(masked).unbind()
        g_new = ab ^ (d & beta) ^ (e & alpha)
        p_new = ac ^ (d & gamma) ^ (f & alpha)
        if turn.first:
            g_new ^= d & e
            p_new ^= d & f
        g, p = g_high ^ g_new, p_new
    # The borrow, with the top bits: those of c are known to all.
    bit = (g & 1) ^ ((high >> 63) & 1)
    if turn.first:
        bit ^= (c >> 63) & 1
    rho_bit = turn.draw(shape) & 1
    z = turn.open_bits(bit ^ rho_bit)
    return z, turn.dealt(shape)


def _dealer_negative(turn: DealerTurn, r: Tensor) -> tuple[Tensor, Tensor]:
    shape = r.shape
    turn.deal_bits(interleave_order(r))
    for width in _WIDTHS:
        keep = _low(width)
        alpha, beta, gamma = (turn.draw_bits(shape) & keep for _ in range(3))
        turn.deal_bits(alpha & beta)
        turn.deal_bits(alpha & gamma)
    rho = turn.draw_bits(shape) & 1
    turn.deal(rho)
    return torch.empty(shape, dtype=torch.int64, device="meta"), rho


negative = define(
    "negative(Tensor c, int group) -> (Tensor, Tensor)",
    lambda c: (c.new_empty(c.shape), c.new_empty(c.shape)),
    _party_negative,
    _dealer_negative,
)
"""The sign bit of x, where c = x + r: z for all to see, and shares of rho."""


def _flip(z: Tensor) -> Tensor:
    return 1 - 2 * z


bit = define(
    "bit(Tensor z, Tensor rho, int group) -> Tensor",
    lambda z, rho: z.new_empty(z.shape),
    lambda turn, z, rho: (_flip(z) * rho).add_(z) if turn.first else _flip(z) * rho,
    lambda turn, z, rho: torch.empty(z.shape, dtype=torch.int64, device="meta"),
)
"""Shares of the bit itself, as a whole number."""


def _party_choose(turn: PartyTurn, z: Tensor, rho: Tensor, a: Tensor, e: Tensor) -> Tensor:
    x = a + e if turn.first else a
    flipped = _flip(z)
    shape = torch.broadcast_shapes(z.shape, a.shape)
    return z * x + flipped * (e * rho + turn.dealt(shape))


def _dealer_choose(turn: DealerTurn, z: Tensor, rho: Tensor, a: Tensor, e: Tensor) -> Tensor:
    chosen = rho * a
    turn.deal(chosen)
    return torch.empty(chosen.shape, dtype=torch.int64, device="meta")


choose = define(
    "choose(Tensor z, Tensor rho, Tensor a, Tensor e, int group) -> Tensor",
    lambda z, rho, a, e: z.new_empty(torch.broadcast_shapes(z.shape, a.shape)),
    _party_choose,
    _dealer_choose,
)
"""m x, where m = z xor rho and x = e + a."""


def _party_choose_quotient(
    turn: PartyTurn, z: Tensor, rho: Tensor, y: Tensor, c: Tensor, bits: int
) -> Tensor:
    shape = torch.broadcast_shapes(z.shape, y.shape)
    v = turn.dealt(shape)
    w = turn.dealt(shape, share_dtype(bits))
    c = c + (1 << 62)
    public = ((c >> bits) & _low(64 - bits)) - (1 << (62 - bits))
    chosen = public * rho + v - ((w.to(torch.int64) << (64 - bits)) & (c >> 63))
    return z * y + _flip(z) * chosen


def _dealer_choose_quotient(
    turn: DealerTurn, z: Tensor, rho: Tensor, y: Tensor, r: Tensor, bits: int
) -> Tensor:
    v, w = deal_truncation(r, bits)
    turn.deal(rho * v)
    turn.deal(rho.to(w.dtype) * w)
    shape = torch.broadcast_shapes(rho.shape, r.shape)
    return torch.empty(shape, dtype=torch.int64, device="meta")


choose_quotient = define(
    "choose_quotient(Tensor z, Tensor rho, Tensor y, Tensor c, int bits, int group) -> Tensor",
    lambda z, rho, y, c, bits: z.new_empty(torch.broadcast_shapes(z.shape, y.shape)),
    _party_choose_quotient,
    _dealer_choose_quotient,
)
"""m y, where y is the quotient of a truncation by 2^bits and c what was opened for it: no opening.

The share of y is linear in what the dealer dealt for it, which the dealer can multiply by rho.
"""
