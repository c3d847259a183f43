"""Compiled kernels on bit planes: numba, one pass over memory each.

Plane i of n elements holds bit i of all of them, in W = ceil(n / 64) words: element e is bit e // W
of word e % W. So every loop runs over words that follow one another, and LLVM makes vectors of it.
`first` is -1 for the first party, who adds what is public, and 0 for the others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.spdz.ring.vector_code import swap_bits

_BLOCK = 32
"""Words of each plane that are transposed together: 16 KiB, in the first cache."""
_ROW = 8 * _BLOCK
"""Bytes of such a row, eight words at a time."""


@njit("void(i8[::1], i8[:,::1])", cache=True, nogil=True)
def to_planes(x, planes):
    """planes[i] = bit i of x [n]; planes is [64, W], and the bits past n are zero.

    64 x 64 bits are transposed by swapping ever smaller blocks (Warren, Hacker's Delight, 7-3),
    for many words side by side.
    """
    width = planes.shape[1]
    block = np.zeros((64, _BLOCK), np.int64)
    words = block.ctypes.data
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        for k in range(64):
            row, part = block[k], x[k * width + start : k * width + stop]
            for v in range(part.shape[0]):
                row[v] = part[v]
            for v in range(part.shape[0], _BLOCK):
                row[v] = 0
        step, low = 32, 0x00000000FFFFFFFF
        while step:
            for base in range(0, 64, 2 * step):
                for at in range(base * _ROW, (base + step) * _ROW, 64):
                    swap_bits(words + at, words + at + step * _ROW, step, low)
            step >>= 1
            low ^= low << step
        for k in range(64):
            row, part = block[k], planes[k, start:stop]
            for v in range(part.shape[0]):
                part[v] = row[v]


@njit("void(i8[:,::1], i8[:,::1], i8[:,::1], i8, i8[:,::1], i8[:,::1])", cache=True, nogil=True)
def leaves(c, r, pairs, first, g, p):
    """Shares of (g, p) of the pairs of bits (63, 62), (61, 60), ... of the low 63 bits.

    With t = p_h & r_l = (~c_h & r_l) ^ (r_h & r_l), where r_h & r_l was dealt,
    g = g_h ^ (t & ~c_l) and p = p_h & p_l = (p_h & ~c_l) ^ t. Bit 63 is (g, p) = (0, 1).

    Args:
        c: public planes [64, W].
        r: shares of the planes [64, W] of the mask.
        pairs: shares [31, W] of r_h & r_l.
        first: -1 or 0.
        g: out, [32, W].
        p: out, [32, W].
    """
    width = c.shape[1]
    for i in range(31):
        for v in range(width):
            high, low = ~c[2 * i + 1, v], ~c[2 * i, v]
            r_high = r[2 * i + 1, v]
            t = (high & r[2 * i, v]) ^ pairs[i, v]
            g[i, v] = (r_high & high) ^ (t & low)
            p[i, v] = ((r_high ^ (first & high)) & low) ^ t
    for v in range(width):
        low = ~c[62, v]
        g[31, v] = r[62, v] & low
        p[31, v] = r[62, v] ^ (first & low)


@njit("void(i8[:,::1], i8[:,::1], i8[:,::1], i8[:,::1])", cache=True, nogil=True)
def mask_operands(g, p, masks, message):
    """message = (p_h, g_l, p_l) ^ masks: [3 w, W], or without p_l [2, W] at the last level.

    g and p are [2 w, W]: of each pair of planes, the odd one is the high one.
    """
    w, width = g.shape[0] // 2, g.shape[1]
    for i in range(w):
        for v in range(width):
            message[i, v] = p[2 * i + 1, v] ^ masks[i, v]
            message[w + i, v] = g[2 * i, v] ^ masks[w + i, v]
        if w > 1:
            for v in range(width):
                message[2 * w + i, v] = p[2 * i, v] ^ masks[2 * w + i, v]


@njit(
    "void(i8[:,::1], i8[:,::1], i8[:,::1], i8[:,::1], i8[:,::1], i8, i8[:,::1], i8[:,::1])",
    cache=True,
    nogil=True,
)
def fold(g, p, opened, masks, products, first, g_next, p_next):
    """(g, p) = (g_h ^ (p_h & g_l), p_h & p_l): from [2 w, W] to [w, W], shares by XOR.

    With d = p_h ^ a and e = g_l ^ b opened, p_h & g_l = ab ^ (d & b) ^ (a & e) ^ (d & e).

    Args:
        g: [2 w, W].
        p: [2 w, W].
        opened: the XOR of all parties' messages, [3 w, W] or [2, W].
        masks: shares of the masks of that message.
        products: shares of a & b for g_l, then for p_l: [2 w, W] or [1, W].
        first: -1 or 0.
        g_next: out, [w, W].
        p_next: out, [w, W]; left alone at the last level.
    """
    w, width = g.shape[0] // 2, g.shape[1]
    for i in range(w):
        for v in range(width):
            d, a = opened[i, v], masks[i, v]
            e = opened[w + i, v]
            both = products[i, v] ^ (d & (masks[w + i, v] ^ (first & e))) ^ (a & e)
            g_next[i, v] = g[2 * i + 1, v] ^ both
        if w > 1:
            for v in range(width):
                d, a = opened[i, v], masks[i, v]
                e = opened[2 * w + i, v]
                both = products[w + i, v] ^ (d & (masks[2 * w + i, v] ^ (first & e))) ^ (a & e)
                p_next[i, v] = both


@njit("void(i8[::1], i1[::1])", cache=True, nogil=True)
def unpack(plane, bits):
    """The bits [n] of a plane [W], each as an int8 of its own."""
    width = plane.shape[0]
    for row in range(64):
        part = bits[row * width : (row + 1) * width]
        for v in range(part.shape[0]):
            part[v] = (plane[v] >> row) & 1
