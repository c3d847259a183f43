from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.spdz import bits
from fedmpi.spdz.stream import Stream, new_key
from tests.spdz.reference import (
    reveal,
    reveal_bits,
    share,
    sign_and_relu,
    truncate,
    uniform,
)

EXTREMES = torch.tensor(
    [0, 1, -1, 2, -2, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63), 2**62 - 1]
)
PARTIES = (1, 2, 3, 7)


def values(n: int) -> Tensor:
    """Words of all sizes, the extremes among them."""
    x = uniform(n) >> torch.randint(0, 64, (n,))
    x[: len(EXTREMES)] = EXTREMES[:n]
    return x


def deal(n: int, parties: int) -> list[bits.ComparisonMaterial]:
    """Each party's randomness, as the dealer and the parties make it apart, from the same keys."""
    keys = [new_key() for _ in range(parties)]
    at_dealer = [Stream(key) for key in keys]
    free = [s.uniform(7, bits.free_words(n)) for s in at_dealer]
    dependent = [s.uniform(7, bits.dependent_words(n)) for s in at_dealer[:-1]]
    correction = bits.deal_comparison(n, free, dependent)
    material = []
    for key in keys:
        stream = Stream(key)
        mine = stream.uniform(7, bits.free_words(n))
        last = len(material) == parties - 1
        rest = correction if last else stream.uniform(7, bits.dependent_words(n))
        material.append(bits.ComparisonMaterial.of(n, mine, rest))
    return material


def compare(x: list[Tensor]) -> tuple[list[bits.Comparison], list[Tensor], list[Tensor]]:
    """The comparisons after their end, shares of the sign, and all messages of one party."""
    material = deal(x[0].numel(), len(x))
    parties = [bits.Comparison(m, first=j == 0) for j, m in enumerate(material)]
    c = reveal([p.mask(xj) for p, xj in zip(parties, x, strict=True)])
    messages = [p.begin(c) for p in parties]
    sent = [messages[0]]
    for _ in bits.LEVELS:
        opened = reveal_bits(messages)
        messages = [p.fold(opened) for p in parties]
        sent.append(messages[0])
    z = reveal_bits(messages)
    return parties, [p.end(z) for p in parties], sent


@pytest.mark.parametrize("parties", PARTIES)
def test_the_reference_is_exact(parties: int) -> None:
    x = values(300)
    msb, relu = sign_and_relu(share(x, parties))
    assert torch.equal(reveal(msb), (x < 0).long())
    assert torch.equal(reveal(relu), x.clamp(min=0))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("n", [0, 1, 2, 12, 63, 64, 65, 127, 1000, 2500])
def test_the_kernels_equal_the_reference(n: int, parties: int) -> None:
    x = values(n)
    shares = share(x, parties)
    comparisons, msb, _ = compare(shares)
    expected_msb, expected_relu = sign_and_relu(shares)
    assert torch.equal(reveal(msb), reveal(expected_msb))
    relu = [c.relu(xj) for c, xj in zip(comparisons, shares, strict=True)]
    assert torch.equal(reveal(relu), reveal(expected_relu))
    product = [c.multiply(xj) for c, xj in zip(comparisons, shares, strict=True)]
    assert torch.equal(reveal(product), x.clamp(max=0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=70))
def test_any_words_are_compared_exactly(words: list[int]) -> None:
    x = torch.tensor(words)
    assert torch.equal(reveal(compare(share(x, 2))[1]), (x < 0).long())


def test_the_bytes_of_a_relu_are_those_that_are_promised() -> None:
    n = 64 * 100
    _, _, sent = compare(share(values(n), 2))
    assert [m.shape[0] for m in sent] == [48, 24, 12, 6, 2, 1]
    party = 8 + sum(8 * m.numel() for m in sent) / n
    dealer = 8 * bits.dependent_words(n) / n
    assert party == 8 + 93 / 8
    assert dealer == 156 / 8 + 16
    assert 2 * party + dealer == 74.75 < 144


def test_openings_are_masked() -> None:
    """What is opened for equal values looks uniform: half of its bits are set, in each plane."""
    _, _, sent = compare(share(torch.full((64 * 64,), 5), 2))
    for message in sent:
        ones = sum((message >> i & 1).sum(1) for i in range(64)) / (64 * 64)
        assert ((ones - 0.5).abs() < 0.06).all()


@pytest.mark.parametrize("n", [0, 1, 64, 100, 64 * 33 + 5])
def test_planes_hold_the_bits(n: int) -> None:
    x = values(n)
    width = bits.plane_words(n)
    planes = torch.full((64, width), -1)
    bits._kernels().to_planes(x.numpy(), planes.numpy())
    for e in range(0, n, 17):
        held = [int(planes[i, e % width] >> (e // width) & 1) for i in range(64)]
        assert held == [int(x[e] >> i & 1) for i in range(64)]


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("f", [1, 16, 31, 62])
def test_truncation_is_off_by_at_most_one_unit(f: int, parties: int) -> None:
    x = values(500)
    x = x[(x > -(2**62)) & (x < 2**62)].view(-1, 1)
    r = uniform(*x.shape)
    c = x + bits.TRUNCATION_OFFSET + r
    r_high, r63 = (share(secret, parties) for secret in bits.truncation_secrets(r, f))
    y = reveal(
        [
            bits.truncate(c, h, s, f, first=j == 0)
            for j, (h, s) in enumerate(zip(r_high, r63, strict=True))
        ]
    )
    for result in (y, reveal(truncate(share(x, parties), f))):
        assert set((result - (x >> f)).view(-1).tolist()) <= {0, 1}


def test_truncation_of_nothing() -> None:
    nothing = torch.empty(0, 3, dtype=torch.int64)
    assert bits.truncate(nothing, nothing, nothing, 16, first=True).shape == (0, 3)
