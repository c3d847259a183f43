"""A secret as the owner sees it: a pointer to its shares, its scale, and its mask.

A secret gets a mask a the first time it enters a product, and e = x - a is opened once; every
later product with it, with its transpose or another view, needs no further opening of it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch

from fedmpi.spdz.fixed_point import decode
from fedmpi.spdz.group import Group
from fedmpi.spdz.protocols import comparison, operators
from fedmpi.tensors.pointer import HasLink, PointerTensor, call

View = Callable[[PointerTensor], PointerTensor]


class Masked(NamedTuple):
    """x = e + a: shares of a, and e, which all parties know; the dealer knows a."""

    a: PointerTensor
    e: PointerTensor


class Sign(NamedTuple):
    """A secret bit m = z xor rho: z, which all parties know, and shares of rho."""

    z: PointerTensor
    rho: PointerTensor


class Opened(NamedTuple):
    """c = x 2^bits + r, which all parties know; the dealer knows r."""

    c: PointerTensor
    bits: int


class Memory:
    """Shares that several views look at; `version` counts the changes."""

    def __init__(self) -> None:
        self.version = 0


class Secret:
    """Shares of an integer tensor, or of real numbers in fixed point.

    Args:
        share: int64, on the parties.
        bits: f: the value is the sum of the shares times 2^-f.
        group: of the parties.
        base: the secret that this one is a view of, and how to look at it.
        whole: the view shows all of the base.
        opened: what was opened when it came from a truncation.
        parts: of a secret bit.

    Attributes:
        positive: the bit that says where a ReLU's result is not 0.
    """

    def __init__(
        self,
        share: PointerTensor,
        bits: int,
        group: Group,
        base: Secret | None = None,
        view: View | None = None,
        whole: bool = False,
        opened: Opened | None = None,
        parts: Sign | None = None,
    ) -> None:
        self.share = share
        self.bits = bits
        self.group = group
        self.memory: Memory = base.memory if base else Memory()
        self._opened = opened
        self._parts = parts
        self._sign: Secret | None = None
        self.positive: Secret | None = None
        self._made = self._state
        self._base = base
        self._view = view
        self._whole = whole
        self._masked: tuple[tuple[int, int], Masked] | None = None
        self._came_masked = False

    def __repr__(self) -> str:
        """The rest of the chain: fixed point, shares, pointers to them."""
        ranks = ", ".join(map(str, self.group.ranks))
        return (
            f"FixedPoint(2^-{self.bits}) > shares of int64, id {self.share.remote.key}, "
            f"on ranks {ranks}"
        )

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    def operate(self, operator: Any, *arguments: Any) -> Any:
        """Calls an operator of ours on all members of the group."""
        return call(operator, (*arguments, self.group.number), {})

    @property
    def _state(self) -> tuple[int, int]:
        """What is known of the shares holds as long as nobody writes them, and no scope ends."""
        return self.memory.version, self.group.scopes_ended

    @property
    def unchanged(self) -> bool:
        """Whether the shares still are what they were when this object was made."""
        return self._made == self._state

    @property
    def opened(self) -> Opened | None:
        """What was opened in the truncation that this secret, or what it shows, came from."""
        if not self.unchanged:
            return None
        base, view = self._base, self._view
        if self._opened is None and base is not None and view is not None and base.opened:
            self._opened = Opened(view(base.opened.c), base.opened.bits)
        return self._opened

    @property
    def parts(self) -> Sign | None:
        """Of a secret bit that came from a comparison, or of a view of one."""
        if not self.unchanged:
            return None
        base, view = self._base, self._view
        if self._parts is None and base is not None and view is not None and base.parts:
            self._parts = Sign(*map(view, base.parts))
        return self._parts

    def changed(self) -> None:
        """The shares were written: what was known of them is not true any more."""
        self.memory.version += 1

    def masked(self) -> Masked:
        """The mask, made now if there is none yet."""
        known = self._known_mask()
        if known is None:
            base, view = self._base, self._view
            if base is not None and view is not None and self._whole:
                known = Masked(*map(view, base.masked()))
            else:
                known = Masked(*self.operate(operators.mask, self.share))
            self._masked = self._state, known
        return known

    def _known_mask(self) -> Masked | None:
        if self._masked is not None and self._masked[0] == self._state:
            return self._masked[1]
        base, view = self._base, self._view
        known = base._known_mask() if base is not None and view is not None else None
        if known is None or view is None:
            return None
        found = Masked(*map(view, known))
        self._masked = self._state, found
        return found

    def same_as(self, other: Secret) -> Secret:
        """Takes over what is known of a secret of the same value; returns this one."""
        if other.unchanged:
            self._opened, self._parts, self._sign = other.opened, other.parts, other._sign
            known = other._known_mask()
            if known is not None:
                self._masked = self._state, known
        return self

    def new(self, share: PointerTensor, bits: int | None = None, **more: Any) -> Secret:
        """Another secret of the same group."""
        return Secret(share, self.bits if bits is None else bits, self.group, **more)

    def viewed(self, view: View, whole: bool) -> Secret:
        """A view of this secret."""
        return self.new(view(self.share), base=self, view=view, whole=whole)

    def with_bits(self, bits: int) -> Secret:
        """The same value with more fractional bits."""
        if bits == self.bits:
            return self
        assert bits > self.bits, "precision is lost by truncation only"
        factor = 1 << (bits - self.bits)
        return self.new(call(torch.ops.aten.mul.Tensor, (self.share, factor), {}), bits)

    def local(self, func: Any, *arguments: Any, **keywords: Any) -> Secret:
        """A linear ATen operator: each party does it with its own share."""
        return self.new(call(func, (self.share, *arguments), keywords))

    def reveal(self) -> torch.Tensor:
        """The value here, float64, or int64 if it is whole."""
        total = self.group.reveal(self.share)
        return decode(total, self.bits) if self.bits else total

    def refreshed(self) -> Secret:
        """The same value in other shares."""
        return self.new(self.operate(operators.refresh, self.share))

    def reveal_to(self, worker: HasLink) -> torch.Tensor:
        """The value on one worker, which alone sees it."""
        total = self.group.gather(self.share, worker.link)
        return total.double() * 2.0**-self.bits if self.bits else total

    # ---- in plans ----

    @property
    def gained_mask(self) -> bool:
        """Whether a mask was made for it since it was made, and still holds."""
        return self.unchanged and self._known_mask() is not None and not self._came_masked

    def kind(self) -> Any:
        """What a recording depends on, hashable."""
        masked = self._known_mask() is not None
        return (self.share.layout_there, self.bits, self.group.number, masked)

    def pointers(self) -> list[PointerTensor]:
        """The shares, and the mask if there is one."""
        return [self.share, *(self._known_mask() or ())]

    def standing_in(self, stand_ins: MutableMapping[int, Any]) -> Secret:
        """The same of the stand-ins for its pointers, which it has lost sight of otherwise.

        What looks at the same memory goes on doing so: a write is seen by all.
        """
        share, *mask = (stand_ins[id(pointer)] for pointer in self.pointers())
        found = self.new(share)
        found.memory = stand_ins.setdefault(id(self.memory), found.memory)
        if mask:
            found._masked = found._state, Masked(*mask)
            found._came_masked = True
        return found

    def made_of(self) -> Callable[[PointerTensor], Secret]:
        """Makes secrets of the same scale."""
        bits, group = self.bits, self.group
        return lambda share: Secret(share, bits, group)

    # ---- arithmetic ----

    def plus(self, other: Secret) -> Secret:
        """Both brought to the finer scale of the two."""
        bits = max(self.bits, other.bits)
        ours, theirs = self.with_bits(bits).share, other.with_bits(bits).share
        return self.new(call(torch.ops.aten.add.Tensor, (ours, theirs), {}), bits)

    def minus(self, other: Secret) -> Secret:
        """As `plus`."""
        bits = max(self.bits, other.bits)
        ours, theirs = self.with_bits(bits).share, other.with_bits(bits).share
        return self.new(call(torch.ops.aten.sub.Tensor, (ours, theirs), {}), bits)

    def times(
        self,
        other: Secret,
        kind: str = "mul",
        extra: Sequence[int] = (),
        plus: Secret | None = None,
        scale: int | None = None,
    ) -> Secret:
        """A product, at the finer scale of the two factors, and a sum with a third one.

        What is added before the truncation is part of what is opened for it: the sign of the
        sum then needs no opening of its own.

        Args:
            other: the other factor.
            kind: of product.
            extra: numbers that the product needs.
            plus: what is added.
            scale: fractional bits of the result, at most those of both factors together.
        """
        if kind == "mul" and self.parts:
            return other.chosen_by(self.parts)
        if kind == "mul" and other.parts:
            return self.chosen_by(other.parts)
        (a, e), (b, f) = self.masked(), other.masked()
        finer = max(self.bits, other.bits) if scale is None else scale
        bits = self.bits + other.bits - finer
        if not bits or (plus is not None and plus.bits != finer):
            share = self.operate(operators.multiply, kind, e, a, f, b, list(extra))
            found = self.new(share, self.bits + other.bits)
            found = found.cut(bits) if bits else found
            return found.plus(plus) if plus else found
        added = plus.share if plus else None
        share, c = self.operate(
            operators.scaled_product, kind, e, a, f, b, added, list(extra), bits
        )
        return self.new(share, finer, opened=Opened(c, bits))

    def times_public(
        self,
        public: PointerTensor,
        bits: int,
        kind: str = "mul",
        extra: Sequence[int] = (),
        swapped: bool = False,
    ) -> Secret:
        """A product with a tensor that the parties know.

        Args:
            public: int64.
            bits: its scale.
            kind: of product.
            extra: numbers that the product needs.
            swapped: it is the left factor.
        """
        factors = (public, self.share) if swapped else (self.share, public)
        share = self.operate(operators.public_product, kind, *factors, list(extra))
        product = self.new(share, self.bits + bits)
        cut = min(self.bits, bits)
        return product.cut(cut) if cut else product

    # ---- signs ----

    def sign(self) -> Secret:
        """The bit that says whether the value is negative; found once."""
        if self._sign is None or not self.unchanged:
            c = self.opened.c if self.opened else self.masked().e
            self._sign = self.bit(Sign(*self.operate(comparison.negative, c)))
        return self._sign

    def bit(self, parts: Sign) -> Secret:
        """The secret bit of these parts."""
        return self.new(self.operate(comparison.bit, *parts), 0, parts=parts)

    def flipped(self) -> Secret:
        """The other value of a secret bit."""
        if self.parts is None:
            return self.local(torch.ops.aten.neg.default).plus_number(1)
        z = call(torch.ops.aten.rsub.Scalar, (self.parts.z, 1), {})
        return self.bit(Sign(z, self.parts.rho))

    def chosen_by(self, bit: Sign) -> Secret:
        """The value where the bit is 1, and 0 elsewhere."""
        if self.opened:
            c, bits = self.opened
            share = self.operate(comparison.choose_quotient, *bit, self.share, c, bits)
        else:
            share = self.operate(comparison.choose, *bit, *self.masked())
        return self.new(share)

    def cut(self, bits: int) -> Secret:
        """The same value with fewer fractional bits."""
        share, c = self.operate(operators.truncate, self.share, bits)
        return self.new(share, self.bits - bits, opened=Opened(c, bits))

    def times_number(self, value: float, precision: int | None = None) -> Secret:
        """A product with a number that the parties know, exact to some 2^-precision of its size.

        Without a precision it is that of the secret, and at least 16.
        """
        if value == round(value) and abs(value) < 2**20:
            return self.local(torch.ops.aten.mul.Tensor, int(value))
        _, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
        precision = precision or max(self.bits, 16)
        encoded = min(precision - int(exponent), 60)
        if encoded <= 0:
            return self.local(torch.ops.aten.mul.Tensor, round(value))
        share, c = self.operate(operators.scale, self.share, float(value), encoded, encoded)
        return self.new(share, opened=Opened(c, encoded))

    def plus_number(self, value: float) -> Secret:
        """A sum with a number that the parties know."""
        share = self.operate(operators.add_number, self.share, float(value), self.bits)
        return self.new(share)

    def plus_public(self, public: PointerTensor, bits: int) -> Secret:
        """A sum with a tensor, int64, of that scale, that the parties know."""
        assert bits == self.bits, "both have the same scale"
        return self.new(self.operate(operators.add_public, self.share, public))
