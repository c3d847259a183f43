"""What secure computation costs one party's processor: products and random words.

    python -m jobs.bench_ring          (make bench-ring)

One thread. Products of 64-bit words are exact mod 2^64 and stand beside the float64 product of
the same shape (torch, on its BLAS), the nearest that the processor has a library for. Medians of
repeats that take turns, so that a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fedmpi.spdz.ring import matmul as ring
from fedmpi.spdz.stream import Stream, new_key

SQUARES = (64, 128, 256, 512, 1024)
LAYERS = ((1, 784, 128), (8, 784, 128), (32, 784, 128), (128, 784, 128))
# Channels in and out, height and width, padding: LeNet-5, and a wider one with 20 and 50 channels.
CONVOLUTIONS = ((1, 6, 28, 2), (6, 16, 14, 0), (1, 20, 28, 0), (20, 50, 12, 0))
BATCH, KERNEL = 32, 5


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


if __name__ == "__main__":
    main()
