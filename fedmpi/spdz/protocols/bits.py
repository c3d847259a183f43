"""The sign of a shared number: what one party computes, and the dealer; no messages.

c = x + r is open, with r uniform, and

    msb(x) = c63 ^ r63 ^ [c' < r']                      c', r' are the low 63 bits

Bit i of r' is above that of c' if g = r & ~c, and equal to it if p = ~(c ^ r). Neighbours combine,
high over low, to (g_h ^ (p_h & g_l), p_h & p_l), a tree of six levels, on XOR shares of the bits of
r. The lowest level needs no opening: c is public, and r_h & r_l is dealt. The other five open the
operands of their ANDs under Beaver masks, in 16, 8, 4, 2 and 1 pairs of planes. At last
z = msb ^ rho is opened, with rho a random bit that is shared by XOR and by addition.

**Bit planes.** Plane i holds bit i of all n elements in W = ceil(n / 64) words (`bit_kernels`). A
level then works on whole words, and a message is dense without packing.

**On the wire.** Six openings: 92/8 + 1/8 = 11.6 bytes for each element and party, and
31/8 + 61/8 + 16 = 27.5 for each element from the dealer to the last party, up to the rounding of n
to a multiple of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = (16, 8, 4, 2, 1)
"""Pairs of planes at each level that opens something."""
_MASKED = (3, 3, 3, 3, 2)
"""Of each pair, the planes that are opened: p_h, g_l and, but for the last level, p_l."""
_MULTIPLIED = (2, 2, 2, 2, 1)
"""Of each pair, the products: p_h & g_l and, but for the last level, p_h & p_l."""


class _Part(NamedTuple):
    """So many planes of W words, or n words, of a party's randomness."""

    name: str
    planes: int  # 0: one word for each element


_FREE = (_Part("masks", 92), _Part("rho_bits", 1))
_DEPENDENT = (
    _Part("r_planes", 64),
    _Part("pairs", 31),
    _Part("products", 61),
    _Part("rho", 0),
)


def plane_words(n: int) -> int:
    """W, the words of a plane of n elements."""
    return -(-n // 64)


def free_words(n: int) -> int:
    """Words that every party draws from its stream for n comparisons."""
    return _words(_FREE, n)


def dependent_words(n: int) -> int:
    """Words of a party that depend on the others' draws.

    All parties but the last draw them from their streams, after the free words; the last one gets
    them from the dealer.
    """
    return _words(_DEPENDENT, n)


class ComparisonMaterial(NamedTuple):
    """A party's randomness for the signs of n elements: views of what it drew and received."""

    masks: Tensor  # [92, W], by XOR: of p_h, g_l and p_l, level after level
    rho_bits: Tensor  # [1, W], by XOR
    r_planes: Tensor  # [64, W], by XOR
    pairs: Tensor  # [31, W], by XOR: r_h & r_l
    products: Tensor  # [61, W], by XOR: (p_h's mask) & (g_l's), then & (p_l's), level after level
    rho: Tensor  # [n], additive

    @classmethod
    def of(cls, n: int, free: Tensor, dependent: Tensor) -> ComparisonMaterial:
        """From int64 [free_words(n)] and [dependent_words(n)]; no copies."""
        return cls(*_cut(_FREE, n, free), *_cut(_DEPENDENT, n, dependent))


def deal_comparison(n: int, r: Tensor, free: Tensor, dependent: Tensor) -> Tensor:
    """The dealer's part: what the last party needs so that all shares fit together.

    Args:
        n: elements to be compared.
        r: int64 [n], what was added to them.
        free: int64 [free_words(n)], the words that all parties draw first, combined by XOR.
        dependent: int64 [dependent_words(n)], those that all parties but the last draw then,
            combined: up to the last n words by XOR, those by addition. Becomes the last
            party's.

    Returns:
        rho, int64 [n].
    """
    masks, rho_plane = _cut(_FREE, n, free)
    width = plane_words(n)
    r_planes, pairs, products, rho_share = _cut(_DEPENDENT, n, dependent)
    planes = _planes(64, width)
    _kernels().to_planes(r.numpy(), planes.numpy())
    r_planes ^= planes
    pairs ^= torch.bitwise_and(planes[1:63:2], planes[0:62:2])
    of_levels = zip(LEVELS, _levels(masks, _MASKED), _levels(products, _MULTIPLIED), strict=True)
    for w, masks_here, products_here in of_levels:
        p_high, *lows = masks_here.split(w)
        for low, product in zip(lows, products_here.split(w), strict=True):
            product ^= p_high & low
    rho_bits = torch.empty(n, dtype=torch.int8)
    _kernels().unpack(rho_plane[0].numpy(), rho_bits.numpy())
    rho = rho_bits.to(torch.int64)
    torch.sub(rho, rho_share, out=rho_share)
    return rho


class Comparison:
    """One party's side of the signs of n shared elements.

    comparison = Comparison(material, first=party == 1)
    message = comparison.begin(c)
    for _ in LEVELS:
        message = comparison.fold(<XOR over the parties of> message)
    z = <XOR over the parties of> message

    All tensors are contiguous int64 on the CPU: c [n]; a message [planes, W]. All bits of c and of
    the messages but those past n are data: open them among the parties only. Material serves once.
    """

    def __init__(self, material: ComparisonMaterial, *, first: bool) -> None:
        self._material = material
        self._first = -int(first)
        self._masks = _levels(material.masks, _MASKED)
        self._products = _levels(material.products, _MULTIPLIED)
        self._level = 0

    def begin(self, c: Tensor) -> Tensor:
        """Takes the public c = x + r [n]; what to open for the first level, [48, W]."""
        m, width = self._material, self._material.masks.shape[1]
        planes = _planes(64, width)
        self._g, self._p = _planes(32, width), _planes(32, width)
        _kernels().to_planes(c.numpy(), planes.numpy())
        self._c63 = planes[63]
        _kernels().leaves(
            planes.numpy(), m.r_planes.numpy(), m.pairs.numpy(), self._first,
            self._g.numpy(), self._p.numpy(),
        )  # fmt: skip
        return self._message()

    def fold(self, opened: Tensor) -> Tensor:
        """Takes what was opened for a level; what to open for the next, or the masked sign [1, W].

        The messages' planes: 48 (from `begin`), 24, 12, 6, 2, 1.
        """
        w, width = LEVELS[self._level], opened.shape[1]
        g, p = _planes(w, width), _planes(w, width)
        _kernels().fold(
            self._g.numpy(), self._p.numpy(), opened.numpy(),
            self._masks[self._level].numpy(), self._products[self._level].numpy(),
            self._first, g.numpy(), p.numpy(),
        )  # fmt: skip
        self._g, self._p = g, p
        self._level += 1
        if self._level < len(LEVELS):
            return self._message()
        sign = g ^ self._material.r_planes[63:] ^ self._material.rho_bits
        return sign ^ self._c63 if self._first else sign

    def _message(self) -> Tensor:
        masks = self._masks[self._level]
        message = torch.empty_like(masks)
        _kernels().mask_operands(
            self._g.numpy(), self._p.numpy(), masks.numpy(), message.numpy()
        )  # fmt: skip
        return message


@cache
def _kernels() -> ModuleType:
    """Compiled, or read from numba's cache, at the first use: not at import."""
    from fedmpi.spdz.protocols import bit_kernels

    return bit_kernels


def _planes(count: int, width: int) -> Tensor:
    return torch.empty((count, width), dtype=torch.int64, device="cpu")


def _words(parts: Sequence[_Part], n: int) -> int:
    return sum(part.planes * plane_words(n) if part.planes else n for part in parts)


def _cut(parts: Sequence[_Part], n: int, words: Tensor) -> list[Tensor]:
    """The parts that lie one after another in a vector of words, as views."""
    found, width = [], plane_words(n)
    for part in parts:
        shape = (part.planes, width) if part.planes else (n,)
        size = part.planes * width if part.planes else n
        found.append(words[:size].view(shape))
        words = words[size:]
    return found


def _levels(planes: Tensor, kinds: Sequence[int]) -> list[Tensor]:
    """For each level its planes, w of each kind one after another."""
    return list(planes.split([w * k for w, k in zip(LEVELS, kinds, strict=True)]))
