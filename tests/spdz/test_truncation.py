"""Truncation: 0 or one unit too large, at the ends of the range too, and it never wraps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import fedmpi
from fedmpi.spdz.protocols.truncation import deal_truncation, finish_truncation, share_dtype
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.tensors.remote_worker import RemoteWorker

Tensor = torch.Tensor

EDGE = 2**62 - 1


def extremes() -> Tensor:
    """Ends of the range, powers of two and what is next to them, and random values of all sizes."""
    powers = [sign * (2**k + d) for k in range(62) for d in (-1, 0, 1) for sign in (1, -1)]
    g = torch.Generator().manual_seed(1)
    random = torch.randint(-(2**62) + 1, 2**62, (2000,), generator=g)
    sizes = torch.randint(0, 62, (2000,), generator=g)
    ends = torch.tensor([EDGE, -EDGE, EDGE - 1, -EDGE + 1, 2**61, -(2**61), 0, 1, -1, *powers])
    return torch.cat([ends, random >> sizes])


def truncated(x: Tensor, bits: int, parties: int, g: torch.Generator) -> Tensor:
    """All members in one place: the sum of the parties' shares of x >> bits."""

    def words(dtype: torch.dtype = torch.int64) -> Tensor:
        raw = torch.randint(0, 256, (x.numel() * dtype.itemsize,), dtype=torch.uint8, generator=g)
        return raw.view(dtype)

    r = words()
    vs = [words() for _ in range(parties - 1)]
    ws = [words(share_dtype(bits)) for _ in range(parties - 1)]
    v = torch.stack(vs).sum(0)
    w = torch.stack(ws).sum(0).to(share_dtype(bits))
    deal_truncation(r, bits, v, w)
    shares = [
        finish_truncation((x + 2**62 + r).clone(), v, w, bits, first=j == 0)
        for j, (v, w) in enumerate(zip([*vs, v], [*ws, w], strict=True))
    ]
    return torch.stack(shares).sum(0)


@pytest.mark.parametrize("parties", range(2, 8))
@pytest.mark.parametrize("bits", [1, 10, 15, 16, 17, 28, 45, 60, 61])
def test_the_error_is_nothing_or_one_unit(parties: int, bits: int) -> None:
    x, g = extremes(), torch.Generator().manual_seed(parties)
    for _ in range(5):
        error = truncated(x, bits, parties, g) - (x >> bits)
        assert set(error.unique().tolist()) <= {0, 1}
    exact = (x >> bits) << bits
    assert torch.equal(truncated(exact, bits, parties, g), exact >> bits), "nothing to round"


@pytest.mark.parametrize("parties", [2, 3, 5, 7])
def test_by_the_parties_themselves(parties: int) -> None:
    with fedmpi.simulate(parties) as workers:
        x = extremes()
        secret = secret_of(share(x, *workers))
        for bits in (1, 16, 17, 30):
            found = secret.cut(bits)
            error = found.group.reveal(found.share) - (x >> bits)
            assert set(error.unique().tolist()) <= {0, 1}


def products(workers: Sequence[RemoteWorker], n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    size = 2.0 ** torch.randint(-8, 15, (n,), generator=g)
    # In whole units: a product has up to 60 bits, more than a float64 holds.
    a, b = (
        ((torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1) * size * 2**16).round()
        for _ in range(2)
    )
    factors = (share(t / 2**16, *workers) for t in (a, b))
    found = (next(factors) * next(factors)).reveal()  # type: ignore[attr-defined]
    error = (found * 2**16).long() - ((a.long() * b.long()) >> 16)
    assert set(error.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("parties", [2, 3])
def test_products_do_not_wrap(parties: int) -> None:
    with fedmpi.simulate(parties) as workers:
        products(workers, 100_000, 0)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_hundred_million_products_do_not_wrap() -> None:
    with fedmpi.simulate(3) as workers:
        for seed in range(50):
            products(workers, 2_000_000, seed)
