"""Compiled kernels on shares, element by element: numba, one pass over memory each.

All arrays are int64 in Z_2^64 unless said otherwise, flat, and of one length. `first` is -1 for
the first party, who adds what is public, and 0 for the others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LOW63 = 0x7FFFFFFFFFFFFFFF
_HALF = 1 << 62


@njit("void(i8[::1], i8[::1], i8[::1], i8[::1], i8, i8[::1])", cache=True, nogil=True)
def masked_product(e, a, f, b, first, z):
    """z += e (b + [first] f) + a f."""
    for k in range(z.shape[0]):
        z[k] += e[k] * (b[k] + (first & f[k])) + a[k] * f[k]


@njit("void(i8[::1], i8[::1], i8[::1])", cache=True, nogil=True)
def subtract_product(a, b, r):
    """r -= a b."""
    for k in range(r.shape[0]):
        r[k] -= a[k] * b[k]


@njit(
    ["void(i8[::1], i8, i8[::1], i2[::1])", "void(i8[::1], i8, i8[::1], i8[::1])"],
    cache=True,
    nogil=True,
)
def deal_truncation(r, bits, v, w):
    """v = 2^(63-f) r63 - ((r mod 2^63) >> f) - v and w = r63 - w; w int16 or int64."""
    for k in range(r.shape[0]):
        high = (r[k] >> 63) & 1
        v[k] = (high << (63 - bits)) - ((r[k] & _LOW63) >> bits) - v[k]
        w[k] = high - w[k]


@njit(
    ["void(i8[::1], i8[::1], i2[::1], i8, i8)", "void(i8[::1], i8[::1], i8[::1], i8, i8)"],
    cache=True,
    nogil=True,
)
def finish_truncation(c, v, w, bits, first):
    """v becomes the share of the quotient, and c loses the 2^62 that was added to it.

    v += [first] ((c >>> f) - 2^(62-f)) - c63 (w << (64 - f)); w int16 or int64.
    """
    low = (1 << (64 - bits)) - 1
    half = first & (1 << (62 - bits))
    for k in range(c.shape[0]):
        part = (first & ((c[k] >> bits) & low)) - half
        v[k] += part - ((w[k] << (64 - bits)) & (c[k] >> 63))
        c[k] -= _HALF


@njit("void(i1[::1], i8[::1], i8, i8[::1])", cache=True, nogil=True)
def bit_share(z, rho, first, bit):
    """Shares of z xor rho; z int8."""
    for k in range(z.shape[0]):
        flip = -z[k]
        bit[k] = ((rho[k] ^ flip) - flip) - (first & flip)


@njit("void(i1[::1], i8[::1], i8[::1], i8[::1], i8, i8[::1])", cache=True, nogil=True)
def choose(z, rho, a, e, first, chosen):
    """chosen becomes z x + (1 - 2 z)(e rho + chosen), where x = e + a; z int8."""
    for k in range(z.shape[0]):
        flip = -z[k]
        x_rho = e[k] * rho[k] + chosen[k]
        chosen[k] = ((a[k] + (first & e[k])) & flip) + ((x_rho ^ flip) - flip)


@njit(
    [
        "void(i1[::1], i8[::1], i8[::1], i8[::1], i8[::1], i2[::1], i8)",
        "void(i1[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8[::1], i8)",
    ],
    cache=True,
    nogil=True,
)
def choose_quotient(z, rho, y, c, v, w, bits):
    """v becomes z y + (1 - 2 z) rho y, of a quotient y; z int8, w int16 or int64.

    rho y = rho ((c >>> f) - 2^(62-f)) + v - c63 (w << (64 - f)), with c as it was opened.
    """
    low = (1 << (64 - bits)) - 1
    half = 1 << (62 - bits)
    for k in range(z.shape[0]):
        flip = -z[k]
        # Unsigned: numba lets LLVM suppose that a sum of signed words does not wrap, and this may.
        opened = np.int64(np.uint64(c[k]) + np.uint64(_HALF))
        y_rho = (((opened >> bits) & low) - half) * rho[k] + v[k]
        y_rho -= (w[k] << (64 - bits)) & (opened >> 63)
        v[k] = (y[k] & flip) + ((y_rho ^ flip) - flip)
