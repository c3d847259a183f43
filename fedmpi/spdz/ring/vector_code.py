"""The innermost loop of the ring product, written in LLVM's vectors.

LLVM turns plain loops into vectors well, but it does not keep a whole tile of sums in registers. So
this one loop is spelled out as vector instructions, without naming any machine's: LLVM lowers them
to AVX-512, AVX2 or NEON.

Where the machine multiplies 64-bit words (AVX-512 DQ: vpmullq) a product is one multiply. Where it
does not, LLVM would build each product of three 32-bit multiplies, two shifts and two adds.
Instead two sums are kept: low x low in 64-bit lanes (vpmuludq), and the two cross terms, which
matter only mod 2^32, in 32-bit lanes (one vpmulld of the halves of b by the swapped halves of a);
they meet once, after the loop.

numba's cache watches the files of the kernels and the kind of CPU, not this file: touch
`kernels.py` and `bit_kernels.py` after a change here.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_TARGET = cpu_target.target_context.codegen().magic_tuple()
"""Triple, CPU and features of the machine that numba compiles for."""
HAS_WIDE_MULTIPLY = "+avx512dq" in str(_TARGET[-1])

# Rows of a tile, vectors in each of its rows, 64-bit lanes in a vector. The sums take 24 of the 32
# registers of AVX-512; with AVX2 8 of 16, because larger tiles were measured to spill.
MR, _VECTORS, _LANES = (12, 2, 8) if HAS_WIDE_MULTIPLY else (2, 2, 4)
NR = _VECTORS * _LANES

_I64, _I32 = ir.IntType(64), ir.IntType(32)
_WIDE = ir.VectorType(_I64, _LANES)
_HALVES = ir.VectorType(_I32, 2 * _LANES)
_SWAP = ir.Constant(_HALVES, [lane ^ 1 for lane in range(2 * _LANES)])
_LOW = ir.Constant(_WIDE, [0xFFFFFFFF] * _LANES)
_HIGH = ir.Constant(_WIDE, [0xFFFFFFFF << 32] * _LANES)
_32 = ir.Constant(_WIDE, [32] * _LANES)


@intrinsic
def words(typing_context: Any, address: Any) -> Any:
    """The int64 words at an address, to be indexed like an array."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _I64.as_pointer())

    return types.CPointer(types.int64)(types.int64), code


@intrinsic
def ring_words(typing_context: Any, address: Any) -> Any:
    """As `words`, of uint64: numba lets LLVM suppose that sums of signed words do not wrap."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _I64.as_pointer())

    return types.CPointer(types.uint64)(types.int64), code


def _copy(width: int) -> Any:
    """An intrinsic that copies so many words as one vector.

    LLVM cannot know that source and target are apart, and would copy word by word.
    """

    def copy(typing_context: Any, source: Any, target: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(_I64, width).as_pointer()
            loaded = builder.load(builder.inttoptr(args[0], vector))
            loaded.align = 8
            stored = builder.store(loaded, builder.inttoptr(args[1], vector))
            stored.align = 8
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return intrinsic(copy)


copy_row = _copy(NR)
copy_four = _copy(4)


@intrinsic
def swap_bits(typing_context: Any, above: Any, below: Any, step: Any, low: Any) -> Any:
    """Swap, in eight words at two addresses, the high bits of the one with the low of the other.

    t = ((above >> step) ^ below) & low; below ^= t; above ^= t << step.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(_I64, 8)
        places = [builder.inttoptr(x, vector.as_pointer()) for x in args[:2]]
        step, low = (_splat(builder, x, vector) for x in args[2:])
        above, below = (builder.load(place) for place in places)
        above.align = below.align = 8
        swapped = builder.and_(builder.xor(builder.lshr(above, step), below), low)
        new = builder.xor(above, builder.shl(swapped, step)), builder.xor(below, swapped)
        for value, place in zip(new, places, strict=True):
            store = builder.store(value, place)
            store.align = 8
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


def _splat(builder: Any, scalar: Any, vector: Any = _WIDE) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), None)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, undefined, lanes)


def _vector_at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), _WIDE.as_pointer())


def _load(builder: Any, base: Any, offset: Any) -> Any:
    vector = builder.load(_vector_at(builder, base, offset))
    vector.align = 8
    return vector


@intrinsic
def multiply_tile(
    typing_context: Any, k: Any, a: Any, b: Any, c: Any, c_rows: Any, keep: Any
) -> Any:
    """c[i, :] = (c[i, :] & keep) + sum over k of a[k, i] b[k, :], a tile of MR x NR words.

    Args:
        typing_context: numba's.
        k: terms of the sum, at least 1.
        a: address of a packed panel [k, MR].
        b: address of a packed panel [k, NR].
        c: address of the tile's first word; words of a row follow one another.
        c_rows: address of MR offsets (in words): where each row starts, seen from c.
        keep: -1 adds to what is there, 0 overwrites it.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        k = args[0]
        a, b, c, c_rows = (builder.inttoptr(x, _I64.as_pointer()) for x in args[1:5])
        entry = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("terms", "write"))
        builder.branch(loop)

        builder.position_at_end(loop)
        term = builder.phi(_I64)
        term.add_incoming(_I64(0), entry)
        kinds = (_WIDE,) if HAS_WIDE_MULTIPLY else (_WIDE, _HALVES)
        tile = [(row, v) for row in range(MR) for v in range(_VECTORS)]
        sums = {place: [builder.phi(kind) for kind in kinds] for place in tile}
        b_row = builder.mul(term, _I64(NR))
        b_vectors = [
            _load(builder, b, builder.add(b_row, _I64(v * _LANES))) for v in range(_VECTORS)
        ]
        a_row = builder.mul(term, _I64(MR))
        grown = {}
        for row in range(MR):
            a_word = builder.load(builder.gep(a, [builder.add(a_row, _I64(row))]))
            a_vector = _splat(builder, a_word)
            for v in range(_VECTORS):
                if HAS_WIDE_MULTIPLY:
                    products = [builder.mul(a_vector, b_vectors[v])]
                else:
                    halves = builder.bitcast(a_vector, _HALVES)
                    swapped = builder.shuffle_vector(halves, halves, _SWAP)
                    products = [
                        builder.mul(builder.and_(a_vector, _LOW), builder.and_(b_vectors[v], _LOW)),
                        builder.mul(swapped, builder.bitcast(b_vectors[v], _HALVES)),
                    ]
                old = sums[row, v]
                grown[row, v] = [builder.add(s, p) for s, p in zip(old, products, strict=True)]
        next_term = builder.add(term, _I64(1))
        term.add_incoming(next_term, loop)
        for place in tile:
            for before, after in zip(sums[place], grown[place], strict=True):
                before.add_incoming(ir.Constant(before.type, None), entry)
                before.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", next_term, k), loop, done)

        builder.position_at_end(done)
        keep = _splat(builder, args[5])
        for row, v in tile:
            total = grown[row, v][0]
            if not HAS_WIDE_MULTIPLY:
                cross = builder.bitcast(grown[row, v][1], _WIDE)
                cross = builder.add(builder.shl(cross, _32), builder.and_(cross, _HIGH))
                total = builder.add(total, cross)
            c_row = builder.load(builder.gep(c_rows, [_I64(row)]))
            offset = builder.add(c_row, _I64(v * _LANES))
            kept = builder.and_(_load(builder, c, offset), keep)
            store = builder.store(builder.add(total, kept), _vector_at(builder, c, offset))
            store.align = 8
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), code
