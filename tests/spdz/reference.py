"""The sign protocol on words, as plain as it can be written: n parties, all in one place.

Six levels of ANDs with Beaver triples, on words in bit-reversed order; nothing is precomputed,
packed or fused. What it opens is what the formulas of `fedmpi.spdz.protocols.bits` open.
"""

from __future__ import annotations

from functools import reduce
from operator import add, xor

import torch
from torch import Tensor

Shares = list[Tensor]


def uniform(*shape: int) -> Tensor:
    """All 64 bits random: randint's upper end is exclusive, so two draws are glued."""
    high, low = (torch.randint(0, 2**32, shape) for _ in range(2))
    return (high << 32) | low


def share(x: Tensor, parties: int) -> Shares:
    masks = [uniform(*x.shape) for _ in range(parties - 1)]
    return [*masks, reduce(torch.sub, masks, x)]


def share_bits(x: Tensor, parties: int) -> Shares:
    masks = [uniform(*x.shape) for _ in range(parties - 1)]
    return [*masks, reduce(xor, masks, x)]


def reveal(shares: Shares) -> Tensor:
    return reduce(add, shares)


def reveal_bits(shares: Shares) -> Tensor:
    return reduce(xor, shares)


def reverse_bits(x: Tensor) -> Tensor:
    """Bit i goes to bit 63 - i, then pairs of neighbours are a top and a bottom half apart."""
    order = [int(f"{i:06b}"[::-1], 2) for i in range(64)]
    return reduce(torch.bitwise_or, (((x >> i) & 1) << order[i] for i in range(64)))


def and_(x: Shares, y: Shares) -> Shares:
    parties = len(x)
    a, b = uniform(*x[0].shape), uniform(*x[0].shape)
    a_shares, b_shares = share_bits(a, parties), share_bits(b, parties)
    products = share_bits(a & b, parties)
    d = reveal_bits([xj ^ aj for xj, aj in zip(x, a_shares, strict=True)])
    e = reveal_bits([yj ^ bj for yj, bj in zip(y, b_shares, strict=True)])
    shares = [
        c ^ (d & bj) ^ (aj & e) for c, aj, bj in zip(products, a_shares, b_shares, strict=True)
    ]
    shares[0] = shares[0] ^ (d & e)
    return shares


def sign_and_relu(x: Shares) -> tuple[Shares, Shares]:
    """Additive shares of msb(x) and of x - x msb(x)."""
    parties, shape = len(x), x[0].shape
    top = torch.tensor(-(2**63))
    r = uniform(*shape)
    c = reveal([xj + rj for xj, rj in zip(x, share(r, parties), strict=True)])

    r_bits = share_bits(reverse_bits(r & ~top), parties)
    not_c = reverse_bits(~c & ~top)
    g = [rj & not_c for rj in r_bits]
    p = list(r_bits)  # bit 63: r = 0 and not c = 0, so g = 0; p is set to 1 below
    p[0] = p[0] ^ not_c ^ reverse_bits(top)
    for width in (32, 16, 8, 4, 2, 1):
        low = 2**width - 1
        g_high, p_high = [gj >> width & low for gj in g], [pj >> width & low for pj in p]
        carried = and_(p_high, [gj & low for gj in g])
        p = [pj & low for pj in and_(p_high, [pj & low for pj in p])]
        g = [hj ^ (cj & low) for hj, cj in zip(g_high, carried, strict=True)]
    r63 = share_bits(r >> 63 & 1, parties)
    msb = [gj ^ rj for gj, rj in zip(g, r63, strict=True)]
    msb[0] = msb[0] ^ (c >> 63 & 1)

    rho = uniform(*shape) & 1
    z = reveal_bits([(m ^ b) & 1 for m, b in zip(msb, share_bits(rho, parties), strict=True)])
    rho_shares, r_rho = share(rho, parties), share(r * rho, parties)
    signs = [bj - 2 * z * bj for bj in rho_shares]
    signs[0] = signs[0] + z
    negative = [
        z * xj + (1 - 2 * z) * (c * bj - rbj)
        for xj, bj, rbj in zip(x, rho_shares, r_rho, strict=True)
    ]
    return signs, [xj - nj for xj, nj in zip(x, negative, strict=True)]


def truncate(x: Shares, bits: int) -> Shares:
    """Additive shares of x / 2^bits, 0 or 1 unit too much, for |x| < 2^62."""
    parties, low63 = len(x), 2**63 - 1
    r = uniform(*x[0].shape)
    c = reveal(x) + 2**62 + r
    r_high, r63 = share((r & low63) >> bits, parties), share(r >> 63 & 1, parties)
    c63 = c >> 63 & 1
    b = [rj - 2 * c63 * rj for rj in r63]
    b[0] = b[0] + c63
    y = [(bj << (63 - bits)) - rj for bj, rj in zip(b, r_high, strict=True)]
    y[0] = y[0] + ((c & low63) >> bits) - 2 ** (62 - bits)
    return y
