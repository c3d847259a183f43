"""The operators of `fedmpi::`: what parties and dealer do together, one call each.

They work on int64 tensors of the ring Z_2^64. A secret x is there as shares x_j whose sum is
x mod 2^64; the dealer has in its place a tensor without values (on the "meta" device). Of a
mask the parties have shares and the dealer has the value. So a program of these operators and
of ATen's linear ones is the same for all members, and each of them runs it in its own way.

Source: Damgard, Pastro, Smart, Zakarias, "Multiparty Computation from Somewhat Homomorphic
Encryption" (CRYPTO 2012), section 3, for multiplication with masks; the rest stands beside
each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from fedmpi.spdz import fixed_point
from fedmpi.spdz.member import Dealer, member
from fedmpi.spdz.protocols.flat import all_bits, flat
from fedmpi.spdz.protocols.truncation import deal_truncation, finish_truncation, share_dtype
from fedmpi.spdz.ring.products import add_product, product, product_shape
from fedmpi.spdz.turn import DealerTurn, PartyTurn
from fedmpi.workers.operators import NAMESPACE, add_operator

Tensor = torch.Tensor

_library = torch.library.Library(NAMESPACE, "DEF")

HALF = 1 << 62
"""Added before a truncation, so that what is truncated is not negative."""


def define(
    schema: str,
    shape: Callable[..., Any],
    party: Callable[..., Any],
    dealer: Callable[..., Any],
) -> OpOverload:
    """Puts an operator on the list.

    Args:
        schema: as `torch.library` wants it; the last argument is the number of the group.
        shape: the results without values, from the arguments but the group.
        party: what a party computes, from its `PartyTurn` and these arguments.
        dealer: what the dealer computes, from its `DealerTurn` and these arguments.
    """
    name = _library.define(schema)
    spoken = schema.partition("(")[0]

    def without_values(*arguments: Any) -> Any:
        return shape(*arguments[:-1])

    def kernel(*arguments: Any, number: int) -> Any:
        *operands, group = arguments
        me = member(group)
        if not isinstance(me, Dealer):
            return party(PartyTurn(me, number, me.count(spoken)), *operands)
        turn = DealerTurn(me, number, me.count(spoken))
        result = dealer(turn, *operands)
        turn.end()
        return result

    _library.impl(name, without_values, "Meta")
    operator: OpOverload = getattr(torch.ops.fedmpi, spoken).default
    add_operator(operator, kernel, numbered=True)
    return operator


def nowhere(shape: Sequence[int]) -> Tensor:
    """What the dealer has in place of shares and of what is open."""
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


# ---- shares ------------------------------------------------------------------------------------


def _deal_input(turn: DealerTurn, like: Tensor) -> Tensor:
    value, turn.dealer.input = turn.dealer.input, None
    assert value is not None, "the owner shares a value"
    turn.deal(value)
    return nowhere(like.shape)


receive = define(
    "receive(Tensor like, int group) -> Tensor",
    lambda like: like.new_empty(like.shape),
    lambda turn, like: turn.dealt(like.shape),
    _deal_input,
)
"""Shares of a value that the owner has."""


def _deal_zeros(turn: DealerTurn, x: Tensor) -> Tensor:
    turn.deal(torch.zeros(x.shape, dtype=torch.int64))
    return nowhere(x.shape)


refresh = define(
    "refresh(Tensor x, int group) -> Tensor",
    lambda x: x.new_empty(x.shape),
    lambda turn, x: turn.dealt(x.shape) + x,
    _deal_zeros,
)
"""Other shares of the same value."""

open_value = define(
    "open(Tensor x, int group) -> Tensor",
    lambda x: x.new_empty(x.shape),
    lambda turn, x: turn.open(x.clone()),  # x may be written while it is on its way
    lambda turn, x: nowhere(x.shape),
)
"""The value itself, for all parties to see."""


def _party_mask(turn: PartyTurn, x: Tensor) -> tuple[Tensor, Tensor]:
    a = turn.draw(x.shape)
    return a, turn.open(x - a)


def _dealer_mask(turn: DealerTurn, x: Tensor) -> tuple[Tensor, Tensor]:
    a = turn.draw(x.shape)
    return a, -a


mask = define(
    "mask(Tensor x, int group) -> (Tensor, Tensor)",
    lambda x: (x.new_empty(x.shape), x.new_empty(x.shape)),
    _party_mask,
    _dealer_mask,
)
"""A random mask a of x, and e = x - a for all parties to see; in its place the dealer has -a."""


# ---- what is public ----------------------------------------------------------------------------


def _plus(turn: PartyTurn, x: Tensor, value: Tensor | int, shape: Sequence[int]) -> Tensor:
    """The first party adds what is public; all get new memory."""
    return (
        torch.add(x, value).contiguous()
        if turn.first
        else x.expand(shape).clone(memory_format=torch.contiguous_format)
    )


def _encode(turn: PartyTurn, values: Tensor, bits: int) -> Tensor:
    return fixed_point.encode(values, bits)


encode_public = define(
    "encode_public(Tensor values, int bits, int group) -> Tensor",
    lambda values, bits: values.new_empty(values.shape, dtype=torch.int64),
    _encode,
    lambda turn, values, bits: nowhere(values.shape),
)
"""Values that all parties have made, in fixed point."""


add_number = define(
    "add_number(Tensor x, float value, int bits, int group) -> Tensor",
    lambda x, value, bits: x.new_empty(x.shape),
    lambda turn, x, value, bits: _plus(turn, x, round(value * 2.0**bits), x.shape),
    lambda turn, x, value, bits: nowhere(x.shape),
)
"""x + value, a number known to all."""

add_public = define(
    "add_public(Tensor x, Tensor value, int group) -> Tensor",
    lambda x, value: x.new_empty(torch.broadcast_shapes(x.shape, value.shape)),
    lambda turn, x, value: _plus(turn, x, value, torch.broadcast_shapes(x.shape, value.shape)),
    lambda turn, x, value: nowhere(torch.broadcast_shapes(x.shape, value.shape)),
)
"""x + value, a tensor known to all."""


def _public_product(turn: Any, kind: str, x: Tensor, y: Tensor, extra: Sequence[int]) -> Tensor:
    return product(kind, x, y, extra)


public_product = define(
    "public_product(str kind, Tensor x, Tensor y, int[] extra, int group) -> Tensor",
    lambda kind, x, y, extra: x.new_empty(product_shape(kind, x, y, extra)),
    _public_product,
    lambda turn, kind, x, y, extra: nowhere(product_shape(kind, x, y, extra)),
)
"""A product of shares and a public tensor of integers, in either order."""


# ---- products of secrets -----------------------------------------------------------------------


def _add_products(
    z: Tensor,
    kind: str,
    e: Tensor,
    a: Tensor,
    f: Tensor,
    b: Tensor,
    extra: Sequence[int],
    first: bool,
) -> Tensor:
    """z + E (B_j + [first] F) + A_j F, in place."""
    if kind == "mul" and e.shape == f.shape and all(t.is_contiguous() for t in (e, a, f, b)):
        from fedmpi.spdz.protocols import share_kernels

        share_kernels.masked_product(flat(e), flat(a), flat(f), flat(b), all_bits(first), flat(z))
        return z
    add_product(z, kind, e, b + f if first else b, extra)
    return add_product(z, kind, a, f, extra)


def _party_product(
    turn: PartyTurn, kind: str, e: Tensor, a: Tensor, f: Tensor, b: Tensor, extra: Sequence[int]
) -> Tensor:
    z = turn.dealt(product_shape(kind, e, f, extra))
    return _add_products(z, kind, e, a, f, b, extra, turn.first)


def _dealer_product(
    turn: DealerTurn, kind: str, e: Tensor, a: Tensor, f: Tensor, b: Tensor, extra: Sequence[int]
) -> Tensor:
    c = product(kind, a, b, extra)
    turn.deal(c)
    return nowhere(c.shape)


multiply = define(
    "multiply(str kind, Tensor e, Tensor a, Tensor f, Tensor b, int[] extra, int group) -> Tensor",
    lambda kind, e, a, f, b, extra: e.new_empty(product_shape(kind, e, f, extra)),
    _party_product,
    _dealer_product,
)
"""The product of x = e + a and y = f + b: z_j = c_j + e b_j + a_j f + [first] e f, c = a b."""


def _party_scaled_product(
    turn: PartyTurn,
    kind: str,
    e: Tensor,
    a: Tensor,
    f: Tensor,
    b: Tensor,
    plus: Tensor | None,
    extra: Sequence[int],
    bits: int,
) -> tuple[Tensor, Tensor]:
    z = turn.draw(product_shape(kind, e, f, extra))
    if plus is not None:
        z += plus << bits
    return _truncated(turn, _add_products(z, kind, e, a, f, b, extra, turn.first), bits)


def _dealer_scaled_product(
    turn: DealerTurn,
    kind: str,
    e: Tensor,
    a: Tensor,
    f: Tensor,
    b: Tensor,
    plus: Tensor | None,
    extra: Sequence[int],
    bits: int,
) -> tuple[Tensor, Tensor]:
    # The parties' shares of c are all from their streams: what differs from a b is the mask of
    # the truncation, as random as any.
    r = turn.draw(product_shape(kind, a, b, extra))
    if kind == "mul" and a.shape == b.shape and a.is_contiguous() and b.is_contiguous():
        from fedmpi.spdz.protocols import share_kernels

        share_kernels.subtract_product(flat(a), flat(b), flat(r))
    else:
        r -= product(kind, a, b, extra)
    return _deal_truncated(turn, r, bits)


scaled_product = define(
    "scaled_product(str kind, Tensor e, Tensor a, Tensor f, Tensor b, Tensor? plus, int[] extra, "
    "int bits, int group) -> (Tensor, Tensor)",
    lambda kind, e, a, f, b, plus, extra, bits: _two(e, product_shape(kind, e, f, extra)),
    _party_scaled_product,
    _dealer_scaled_product,
)
"""x y / 2^bits + plus, as `truncate` divides; also what was opened, x y + plus 2^bits + r."""


# ---- truncation --------------------------------------------------------------------------------


def _truncated(turn: PartyTurn, masked: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if turn.first:
        masked += HALF
    c = turn.open(masked)
    v = turn.dealt(c.shape)
    w = turn.dealt(c.shape, share_dtype(bits))
    return finish_truncation(c, v, w, bits, turn.first), c


def _deal_truncated(turn: DealerTurn, r: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    v, w = turn.others(r.shape), turn.others(r.shape, share_dtype(bits))
    deal_truncation(r, bits, v, w)
    turn.give(v)
    turn.give(w)
    return nowhere(r.shape), r


truncate = define(
    "truncate(Tensor x, int bits, int group) -> (Tensor, Tensor)",
    lambda x, bits: _two(x, x.shape),
    lambda turn, x, bits: _truncated(turn, turn.draw(x.shape).add_(x), bits),
    lambda turn, x, bits: _deal_truncated(turn, turn.draw(x.shape), bits),
)
"""x / 2^bits for |x| < 2^62, too large by at most one unit; also x + r for all parties to see, in
whose place the dealer has r."""

scale = define(
    "scale(Tensor x, float value, int encoded, int bits, int group) -> (Tensor, Tensor)",
    lambda x, value, encoded, bits: _two(x, x.shape),
    lambda turn, x, value, encoded, bits: _truncated(
        turn, turn.draw(x.shape).add_(x * round(value * 2.0**encoded)), bits
    ),
    lambda turn, x, value, encoded, bits: _deal_truncated(turn, turn.draw(x.shape), bits),
)
"""x times a public number of so many fractional bits, then divided by 2^bits."""


def _two(like: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    return like.new_empty(tuple(shape)), like.new_empty(tuple(shape))
