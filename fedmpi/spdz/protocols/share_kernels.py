"""Compiled kernels on shares, element by element: numba, one pass over memory each.

All arrays are words of Z_2^64 unless said otherwise, flat, and of one length. They are unsigned,
and so is every number here: numba lets LLVM suppose that a sum of signed words never wraps, and
code in which one did was seen to go wrong. `first` has all bits set for the first party, who adds
what is public, and is 0 for the others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LOW63 = np.uint64(2**63 - 1)
_HALF = np.uint64(2**62)
_0, _1, _62, _63, _64 = (np.uint64(n) for n in (0, 1, 62, 63, 64))


@njit("void(u8[::1], u8[::1], u8[::1], u8[::1], u8, u8[::1])", cache=True, nogil=True)
def masked_product(e, a, f, b, first, z):
    """z += e (b + [first] f) + a f."""
    for k in range(z.shape[0]):
        z[k] += e[k] * (b[k] + (first & f[k])) + a[k] * f[k]


@njit("void(u8[::1], u8[::1], u8[::1])", cache=True, nogil=True)
def subtract_product(a, b, r):
    """r -= a b."""
    for k in range(r.shape[0]):
        r[k] -= a[k] * b[k]


@njit(
    ["void(u8[::1], u8, u8[::1], u2[::1])", "void(u8[::1], u8, u8[::1], u8[::1])"],
    cache=True,
    nogil=True,
)
def deal_truncation(r, bits, v, w):
    """v = 2^(63-f) r63 - ((r mod 2^63) >> f) - v and w = r63 - w; w of 16 or 64 bits."""
    for k in range(r.shape[0]):
        high = r[k] >> _63
        v[k] = (high << (_63 - bits)) - ((r[k] & _LOW63) >> bits) - v[k]
        w[k] = high - np.uint64(w[k])


@njit(
    ["void(u8[::1], u8[::1], u2[::1], u8, u8)", "void(u8[::1], u8[::1], u8[::1], u8, u8)"],
    cache=True,
    nogil=True,
)
def finish_truncation(c, v, w, bits, first):
    """v becomes the share of the quotient, and c loses the 2^62 that was added to it.

    v += [first] ((c >>> f) - 2^(62-f)) - c63 (w << (64 - f)); w of 16 or 64 bits.
    """
    half = _1 << (_62 - bits)
    for k in range(c.shape[0]):
        part = first & ((c[k] >> bits) - half)
        v[k] += part - ((np.uint64(w[k]) << (_64 - bits)) & (_0 - (c[k] >> _63)))
        c[k] -= _HALF


@njit("void(u1[::1], u8[::1], u8, u8[::1])", cache=True, nogil=True)
def bit_share(z, rho, first, bit):
    """Shares of z xor rho; z of 8 bits."""
    for k in range(z.shape[0]):
        flip = _0 - np.uint64(z[k])
        bit[k] = ((rho[k] ^ flip) - flip) - (first & flip)


@njit("void(u1[::1], u8[::1], u8[::1], u8[::1], u8, u8[::1])", cache=True, nogil=True)
def choose(z, rho, a, e, first, chosen):
    """chosen becomes z x + (1 - 2 z)(e rho + chosen), where x = e + a; z of 8 bits."""
    for k in range(z.shape[0]):
        flip = _0 - np.uint64(z[k])
        x_rho = e[k] * rho[k] + chosen[k]
        chosen[k] = ((a[k] + (first & e[k])) & flip) + ((x_rho ^ flip) - flip)


@njit(
    [
        "void(u1[::1], u8[::1], u8[::1], u8[::1], u8[::1], u2[::1], u8)",
        "void(u1[::1], u8[::1], u8[::1], u8[::1], u8[::1], u8[::1], u8)",
    ],
    cache=True,
    nogil=True,
)
def choose_quotient(z, rho, y, c, v, w, bits):
    """v becomes z y + (1 - 2 z) rho y, of a quotient y; z of 8 bits, w of 16 or 64.

    rho y = rho ((c >>> f) - 2^(62-f)) + v - c63 (w << (64 - f)), with c as it was opened.
    """
    half = _1 << (_62 - bits)
    for k in range(z.shape[0]):
        flip = _0 - np.uint64(z[k])
        opened = c[k] + _HALF
        y_rho = ((opened >> bits) - half) * rho[k] + v[k]
        y_rho -= (np.uint64(w[k]) << (_64 - bits)) & (_0 - (opened >> _63))
        v[k] = (y[k] & flip) + ((y_rho ^ flip) - flip)
