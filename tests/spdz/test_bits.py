from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.spdz.protocols import bits
from fedmpi.spdz.stream import Stream, new_key
from tests.spdz.reference import (
    reveal,
    reveal_bits,
    share,
    sign_and_relu,
    uniform,
)

EXTREMES = torch.tensor(
    [0, 1, -1, 2, -2, 2**31, -(2**31), 2**62, -(2**62), 2**63 - 1, -(2**63), 2**62 - 1]
)
PARTIES = (2, 3, 7)


def values(n: int) -> Tensor:
    """Words of all sizes, the extremes among them."""
    x = uniform(n) >> torch.randint(0, 64, (n,))
    x[: len(EXTREMES)] = EXTREMES[:n]
    return x


def deal(r: Tensor, parties: int) -> list[bits.ComparisonMaterial]:
    """Each party's randomness, as the dealer and the parties make it apart, from the same keys."""
    n = r.numel()
    keys = [new_key() for _ in range(parties)]
    at_dealer = [Stream(key) for key in keys]
    free = reveal_bits([s.uniform(7, bits.free_words(n)) for s in at_dealer])
    dependent = [s.uniform(7, bits.dependent_words(n)) for s in at_dealer[:-1]]
    words = bits.dependent_words(n) - n
    rest = torch.cat([reveal_bits([d[:words] for d in dependent]),
                      reveal([d[words:] for d in dependent])])  # fmt: skip
    bits.deal_comparison(n, r, free, rest)
    material = []
    for key in keys:
        stream = Stream(key)
        mine = stream.uniform(7, bits.free_words(n))
        last = len(material) == parties - 1
        drawn = rest if last else stream.uniform(7, bits.dependent_words(n))
        material.append(bits.ComparisonMaterial.of(n, mine, drawn))
    return material


def compare(x: Tensor, parties: int) -> tuple[Tensor, list[Tensor]]:
    """The sign bits, and all messages of one party."""
    r = uniform(*x.shape)
    material = deal(r, parties)
    trees = [bits.Comparison(m, first=j == 0) for j, m in enumerate(material)]
    messages = [tree.begin(x + r) for tree in trees]
    sent = [messages[0]]
    for _ in bits.LEVELS:
        opened = reveal_bits(messages)
        messages = [tree.fold(opened) for tree in trees]
        sent.append(messages[0])
    z = torch.empty(x.shape, dtype=torch.int8)
    bits._kernels().unpack(reveal_bits(messages)[0].numpy(), z.numpy())
    return z ^ reveal([m.rho for m in material]), sent


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
    expected, _ = sign_and_relu(share(x, parties))
    assert torch.equal(compare(x, parties)[0], reveal(expected))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=70))
def test_any_words_are_compared_exactly(words: list[int]) -> None:
    x = torch.tensor(words)
    assert torch.equal(compare(x, 2)[0], (x < 0).long())


def test_the_bytes_of_a_sign_are_those_that_are_promised() -> None:
    n = 64 * 100
    _, sent = compare(values(n), 2)
    assert [m.shape[0] for m in sent] == [48, 24, 12, 6, 2, 1]
    opened = sum(8 * m.numel() for m in sent) / n
    dealt = 8 * bits.dependent_words(n) / n
    assert opened == 93 / 8
    assert dealt == 156 / 8 + 8


def test_openings_are_masked() -> None:
    """What is opened for equal values looks uniform: half of its bits are set, in each plane."""
    _, sent = compare(torch.full((64 * 64,), 5), 2)
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
