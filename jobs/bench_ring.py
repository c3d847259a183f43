"""What secure computation costs one party's processor: products, random words, comparisons.

    python jobs/bench_ring.py          (make bench-ring)

One thread. Products of 64-bit words are exact mod 2^64 and stand beside the float64 product of
the same shape (torch, on its BLAS), the nearest that the processor has a library for. A comparison
is the whole protocol without messages: the dealer and both of two parties, in turn, in one process.
Medians of repeats that take turns, so that a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from operator import xor

import torch
from torch import Tensor

from fedmpi.spdz import bits, ring
from fedmpi.spdz.stream import Stream, new_key

SQUARES = (64, 128, 256, 512, 1024)
LAYERS = ((1, 784, 128), (8, 784, 128), (32, 784, 128), (128, 784, 128))
# Channels in and out, height and width, padding: LeNet-5, and a wider one with 20 and 50 channels.
CONVOLUTIONS = ((1, 6, 28, 2), (6, 16, 14, 0), (1, 20, 28, 0), (20, 50, 12, 0))
BATCH, KERNEL = 32, 5
COMPARED = 100_000


def words(*shape: int) -> Tensor:
    return Stream(new_key()).uniform(1, shape)


def seconds(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """The median time of each, taking turns, after one call to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def line(name: str, macs: int, ring_s: float, float_s: float) -> None:
    print(
        f"{name:<36}{ring_s * 1e3:>9.3f} ms{float_s * 1e3:>9.3f} ms"
        f"{macs / ring_s / 1e9:>8.1f}{macs / float_s / 1e9:>8.1f}{float_s / ring_s:>8.2f}"
    )


def products(repeats: int) -> None:
    print(f"{'':<36}{'ring':>12}{'float64':>12}{'GMAC/s':>8}{'':>8}{'ratio':>8}")
    for m, k, n in [(s, s, s) for s in SQUARES] + list(LAYERS):
        a, b = words(m, k), words(k, n)
        x, y = a.double(), b.double()
        times = seconds(repeats, lambda a=a, b=b: ring.matmul(a, b), lambda x=x, y=y: x @ y)
        line(f"matmul {m} x {k} x {n}", m * k * n, *times)
    for shape in CONVOLUTIONS:
        convolution(repeats, *shape)


def convolution(repeats: int, c_in: int, c_out: int, size: int, padding: int) -> None:
    x, w = words(BATCH, c_in, size, size), words(c_out, c_in, KERNEL, KERNEL)
    stride, pad, dilation = where = ((1, 1), (padding, padding), (1, 1))
    grad = ring.convolution(x, w, *where)
    xf, wf, gf = x.double(), w.double(), grad.double()
    macs = grad.numel() * w[0].numel()

    def forward() -> Tensor:
        return torch.convolution(xf, wf, None, stride, pad, dilation, False, (0, 0), 1)

    def backward(by_x: bool, by_w: bool) -> object:
        return torch.ops.aten.convolution_backward(
            gf, xf, wf, None, stride, pad, dilation, False, (0, 0), 1, (by_x, by_w, False)
        )

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "": (lambda: ring.convolution(x, w, *where), forward),
        ", by its weight": (
            lambda: ring.grad_weight(grad, x, w.shape, *where),
            lambda: backward(False, True),
        ),
        ", by its input": (
            lambda: ring.grad_input(grad, x.shape, w, *where),
            lambda: backward(True, False),
        ),
    }
    for name, pair in pairs.items():
        line(f"convolution {c_in} to {c_out}{name}", macs, *seconds(repeats, *pair))


def streams(repeats: int) -> None:
    stream, numbers = Stream(new_key()), iter(range(1, 1 << 62))
    print()
    for n in (1, 300, 10_000, 1_000_000):
        out = torch.empty(n, dtype=torch.int64)
        (took,) = seconds(repeats, lambda out=out: stream.fill(next(numbers), out))
        print(f"stream of {n:>9,} words {took * 1e6:>10.1f} us {8 * n / took / 1e9:>8.2f} GB/s")


def comparison(repeats: int) -> None:
    """Medians of each part of a ReLU of two parties; the sum of parts is the whole."""
    keys = [new_key() for _ in range(2)]
    x = words(COMPARED) >> 24
    shares = [words(COMPARED)]
    shares.append(x - shares[0])
    rounds: list[dict[str, float]] = []
    for repeat in range(repeats + 1):
        marks = [("", time.perf_counter())]

        def done(name: str, marks: list[tuple[str, float]] = marks) -> None:
            marks.append((name, time.perf_counter()))

        free_n, dependent_n = bits.free_words(COMPARED), bits.dependent_words(COMPARED)
        streams = [Stream(key) for key in keys]
        free = [s.uniform(repeat, free_n) for s in streams]
        dependent = streams[0].uniform(repeat, dependent_n)
        done("dealer: random words")
        correction = bits.deal_comparison(COMPARED, free, [dependent])
        done("dealer: correction")
        streams = [Stream(key) for key in keys]
        own = [s.uniform(repeat, free_n) for s in streams]
        rest = [streams[0].uniform(repeat, dependent_n), correction]
        done("parties: random words")
        material = [bits.ComparisonMaterial.of(COMPARED, *of) for of in zip(own, rest, strict=True)]
        parties = [bits.Comparison(m, first=j == 0) for j, m in enumerate(material)]
        c = sum(p.mask(share) for p, share in zip(parties, shares, strict=True))
        messages = [p.begin(c) for p in parties]
        done("parties: mask, open, leaves")
        for _ in bits.LEVELS:
            opened = reduce(xor, messages)
            messages = [p.fold(opened) for p in parties]
        done("parties: five levels")
        z = reduce(xor, messages)
        for p in parties:
            p.end(z)
        results = [p.relu(share) for p, share in zip(parties, shares, strict=True)]
        done("parties: sign and ReLU")
        assert torch.equal(results[0] + results[1], x.clamp(min=0))
        if repeat:
            rounds.append({name: now - before for (_, before), (name, now) in pairwise(marks)})
    print(f"\nReLU of {COMPARED:,} shared values, dealer and both parties")
    for name in rounds[0]:
        print(f"{name:<36}{statistics.median(r[name] for r in rounds) * 1e3:>9.3f} ms")
    print(f"{'all':<36}{statistics.median(sum(r.values()) for r in rounds) * 1e3:>9.3f} ms")
    party = 8 + 8 * bits.plane_words(COMPARED) * (3 * sum(bits.LEVELS)) / COMPARED
    dealer = 8 * dependent_n / COMPARED
    print(f"bytes for each value: {party:.1f} from each party, {dealer:.1f} from the dealer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    start = time.perf_counter()
    ring.matmul(words(2, 2), words(2, 2))
    print(f"first product {time.perf_counter() - start:.2f} s: compiled, or read from the cache")
    products(repeats)
    streams(repeats)
    comparison(repeats)


if __name__ == "__main__":
    main()
