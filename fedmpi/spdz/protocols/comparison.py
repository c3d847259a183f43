"""The sign of a secret, and what is chosen by it.

c = x + r is open, and the dealer knows r: from a truncation, or from a mask (r = -a). How the sign
is found from that stands in `bits.py` beside this. It stays in two parts: z, which is open, and a
random bit rho of the dealer, msb = z xor rho. A product with it then costs no opening beyond the
other factor's mask:

    m x = z x + (1 - 2 z) rho x,        rho x = rho e + rho a     where x = e + a.
"""

from __future__ import annotations

import numpy as np
import torch

from fedmpi.spdz.protocols import bits
from fedmpi.spdz.protocols.flat import all_bits, flat
from fedmpi.spdz.protocols.operators import define, nowhere
from fedmpi.spdz.protocols.truncation import share_dtype, truncation_parts
from fedmpi.spdz.turn import DealerTurn, PartyTurn

Tensor = torch.Tensor


def _party_negative(turn: PartyTurn, c: Tensor) -> tuple[Tensor, Tensor]:
    from fedmpi.spdz.protocols import bit_kernels

    n = c.numel()
    free = turn.draw([bits.free_words(n)])
    material = bits.ComparisonMaterial.of(n, free, turn.dealt([bits.dependent_words(n)]))
    tree = bits.Comparison(material, first=turn.first)
    message = tree.begin(c.contiguous().view(-1))
    for _ in bits.LEVELS:
        message = tree.fold(turn.open_bits(message))
    z = torch.empty(c.shape, dtype=torch.int8)
    bit_kernels.unpack(turn.open_bits(message).view(-1).numpy(), z.view(-1).numpy())
    return z, material.rho.view(c.shape)


def _dealer_negative(turn: DealerTurn, r: Tensor) -> tuple[Tensor, Tensor]:
    n = r.numel()
    free = turn.draw_bits([bits.free_words(n)])
    words = bits.dependent_words(n)
    given = turn.others_mixed([words], words - n)
    rho = bits.deal_comparison(n, r.contiguous().view(-1), free, given)
    turn.give(given)
    return torch.empty(r.shape, dtype=torch.int8, device="meta"), rho.view(r.shape)


negative = define(
    "negative(Tensor c, int group) -> (Tensor, Tensor)",
    lambda c: (c.new_empty(c.shape, dtype=torch.int8), c.new_empty(c.shape)),
    _party_negative,
    _dealer_negative,
)
"""The sign bit of x, where c = x + r: z, int8, for all to see, and shares of rho."""


def _party_bit(turn: PartyTurn, z: Tensor, rho: Tensor) -> Tensor:
    from fedmpi.spdz.protocols import share_kernels

    found = torch.empty(z.shape, dtype=torch.int64)
    share_kernels.bit_share(
        flat(z.contiguous()), flat(rho.contiguous()), all_bits(turn.first), flat(found)
    )
    return found


bit = define(
    "bit(Tensor z, Tensor rho, int group) -> Tensor",
    lambda z, rho: rho.new_empty(z.shape),
    _party_bit,
    lambda turn, z, rho: nowhere(z.shape),
)
"""Shares of the bit itself, as a whole number."""


def _party_choose(turn: PartyTurn, z: Tensor, rho: Tensor, a: Tensor, e: Tensor) -> Tensor:
    from fedmpi.spdz.protocols import share_kernels

    z, rho, a, e = (t.contiguous() for t in torch.broadcast_tensors(z, rho, a, e))
    chosen = turn.dealt(z.shape)
    share_kernels.choose(flat(z), flat(rho), flat(a), flat(e), all_bits(turn.first), flat(chosen))
    return chosen


def _dealer_choose(turn: DealerTurn, z: Tensor, rho: Tensor, a: Tensor, e: Tensor) -> Tensor:
    chosen = rho * a
    turn.deal(chosen)
    return nowhere(chosen.shape)


choose = define(
    "choose(Tensor z, Tensor rho, Tensor a, Tensor e, int group) -> Tensor",
    lambda z, rho, a, e: rho.new_empty(torch.broadcast_shapes(z.shape, a.shape)),
    _party_choose,
    _dealer_choose,
)
"""m x, where m = z xor rho and x = e + a."""


def _party_choose_quotient(
    turn: PartyTurn, z: Tensor, rho: Tensor, y: Tensor, c: Tensor, shift: int
) -> Tensor:
    from fedmpi.spdz.protocols import share_kernels

    z, rho, y, c = (t.contiguous() for t in torch.broadcast_tensors(z, rho, y, c))
    v, w = turn.dealt(z.shape), turn.dealt(z.shape, share_dtype(shift))
    share_kernels.choose_quotient(
        flat(z), flat(rho), flat(y), flat(c), flat(v), flat(w), np.uint64(shift)
    )
    return v


def _dealer_choose_quotient(
    turn: DealerTurn, z: Tensor, rho: Tensor, y: Tensor, r: Tensor, shift: int
) -> Tensor:
    v, w = truncation_parts(r, shift)
    chosen = rho * v
    turn.deal(chosen)
    turn.deal(rho.to(w.dtype) * w)
    return nowhere(chosen.shape)


choose_quotient = define(
    "choose_quotient(Tensor z, Tensor rho, Tensor y, Tensor c, int bits, int group) -> Tensor",
    lambda z, rho, y, c, shift: rho.new_empty(torch.broadcast_shapes(z.shape, y.shape)),
    _party_choose_quotient,
    _dealer_choose_quotient,
)
"""m y, where y is the quotient of a truncation by 2^bits and c what was opened for it: no opening.

The share of y is linear in what the dealer dealt for it, which the dealer can multiply by rho.
"""
