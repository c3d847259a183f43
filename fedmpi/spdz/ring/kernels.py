"""Compiled kernels of the ring product: numba, exact in Z_2^64, one specialisation each.

Arguments are addresses and counts of 64-bit words, as in BLAS: matrices with any strides, and those
that a convolution sees in an image, then need no copies and no types of their own. The functions of
`grid` and `ring` check what they pass; nothing here does.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fedmpi.spdz.ring.vector_code import (
    MR,
    NR,
    copy_four,
    copy_row,
    multiply_tile,
    ring_words,
    words,
)

# Blocks of the product, in words: a panel of B (KC x NR, 32 KiB) stays in the first cache, the
# block of A (MC x KC, 480 KiB) in the second, the block of B (KC x NC, 2 MiB) in the third.
KC, MC, NC = 256, 240, 1024
WORKSPACE = MR + MR * NR + KC * (MC + NC)
"""Words of scratch memory: an edge tile's row offsets, the tile, the block of A, the block of B."""


@njit("void(i8,i8,i8,i8,i8,i8,i8)", cache=True, nogil=True)
def pack_panel(source, across, count, terms, k, panel, width):
    """panel[t, j] = source[across[j] + terms[t]], zero for count <= j < width.

    The panel is [k, width]. Runs of words that lie one after another are copied as vectors.
    """
    src, col, row, dst = words(source), words(across), words(terms), words(panel)
    if count < width:
        for i in range(k * width):
            dst[i] = 0
    j = 0
    while j < count:
        run = 1
        while j + run < count and col[j + run] == col[j] + run:
            run += 1
        if run >= width and width == NR:
            for t in range(k):
                copy_row(source + 8 * (row[t] + col[j]), panel + 8 * t * NR)
            j += NR
        elif run >= 4:
            for t in range(k):
                copy_four(source + 8 * (row[t] + col[j]), panel + 8 * (t * width + j))
            j += 4
        else:
            for t in range(k):
                dst[t * width + j] = src[row[t] + col[j]]
            j += 1


@njit("void(i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8)", cache=True, nogil=True)
def multiply(
    batch, m, n, k,
    a, a_batch, a_rows, a_cols,
    b, b_batch, b_rows, b_cols,
    c, c_batch, c_rows, c_cols,
    keep, workspace,
):  # fmt: skip
    """C_s = (C_s & keep) + A_s B_s for s < batch; [m, k] x [k, n], m, n, k >= 1.

    A_s[i, j] is the word `a_batch[s] + a_rows[i] + a_cols[j]` after address a: a table of offsets
    for each axis. So for b and c. The order of the loops is that of GotoBLAS (Goto and van de
    Geijn, Anatomy of High-Performance Matrix Multiplication, 2008).
    """
    tile_rows = workspace
    tile = tile_rows + 8 * MR
    a_block = tile + 8 * MR * NR
    b_block = a_block + 8 * KC * MC
    for i in range(MR):
        words(tile_rows)[i] = i * NR
    tile_words, col, row = ring_words(tile), words(c_cols), words(c_rows)
    for s in range(batch):
        a_s = a + 8 * words(a_batch)[s]
        b_s = b + 8 * words(b_batch)[s]
        c_s = c + 8 * words(c_batch)[s]
        out = ring_words(c_s)
        for j0 in range(0, n, NC):
            nc = min(NC, n - j0)
            for k0 in range(0, k, KC):
                kc = min(KC, k - k0)
                keep_now = keep if k0 == 0 else -1
                for j in range(0, nc, NR):
                    cols, terms = b_cols + 8 * (j0 + j), b_rows + 8 * k0
                    pack_panel(b_s, cols, min(NR, nc - j), terms, kc, b_block + 8 * j * kc, NR)
                for i0 in range(0, m, MC):
                    mc = min(MC, m - i0)
                    for i in range(0, mc, MR):
                        rows, terms = a_rows + 8 * (i0 + i), a_cols + 8 * k0
                        pack_panel(a_s, rows, min(MR, mc - i), terms, kc, a_block + 8 * i * kc, MR)
                    for j in range(0, nc, NR):
                        nr = min(NR, nc - j)
                        jc = j0 + j
                        whole = nr == NR
                        if whole:
                            for q in range(1, NR):
                                whole = whole and col[jc + q] == col[jc] + q
                        b_panel = b_block + 8 * j * kc
                        for i in range(0, mc, MR):
                            mr = min(MR, mc - i)
                            a_panel = a_block + 8 * i * kc
                            if whole and mr == MR:
                                rows = c_rows + 8 * (i0 + i)
                                first = c_s + 8 * col[jc]
                                multiply_tile(kc, a_panel, b_panel, first, rows, keep_now)
                            else:
                                multiply_tile(kc, a_panel, b_panel, tile, tile_rows, 0)
                                for p in range(mr):
                                    for q in range(nr):
                                        at = row[i0 + i + p] + col[jc + q]
                                        out[at] = (out[at] & np.uint64(keep_now)) + tile_words[
                                            p * NR + q
                                        ]


@njit("void(i8,i8,i8,i8,i8,i8,i8,i8,i8,i8)", cache=True, nogil=True)
def multiply_vector(n, k, x, x_step, w, w_k, w_n, y, y_step, keep):
    """y[j] = (y[j] & keep) + sum over t < k of x[t] w[t, j], for j < n: bound by reading w once.

    x and y step by x_step and y_step words, w by w_k and w_n words along its two axes.
    """
    vec, mat, out = ring_words(x), ring_words(w), ring_words(y)
    kept = np.uint64(keep)
    if w_k == 1 and w_n != 1:
        for j in range(n):
            total = np.uint64(0)
            if x_step == 1:
                for t in range(k):
                    total += vec[t] * mat[j * w_n + t]
            else:
                for t in range(k):
                    total += vec[t * x_step] * mat[j * w_n + t]
            out[j * y_step] = (out[j * y_step] & kept) + total
        return
    for j in range(n):
        out[j * y_step] &= kept
    if w_n == 1 and y_step == 1:
        for j0 in range(0, n, 1024):  # this much of y stays in the first cache
            width = min(1024, n - j0)
            whole = k - k % 4
            for t in range(0, whole, 4):
                x0, x1 = vec[t * x_step], vec[(t + 1) * x_step]
                x2, x3 = vec[(t + 2) * x_step], vec[(t + 3) * x_step]
                at = t * w_k + j0
                for j in range(width):
                    out[j0 + j] += (
                        x0 * mat[at + j]
                        + x1 * mat[at + w_k + j]
                        + x2 * mat[at + 2 * w_k + j]
                        + x3 * mat[at + 3 * w_k + j]
                    )
            for t in range(whole, k):
                for j in range(width):
                    out[j0 + j] += vec[t * x_step] * mat[t * w_k + j0 + j]
        return
    for t in range(k):
        for j in range(n):
            out[j * y_step] += vec[t * x_step] * mat[t * w_k + j * w_n]
