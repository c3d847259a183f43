"""Traffic by operator: the bytes of a product, reckoned by hand."""

from __future__ import annotations

import pytest
import torch

import fedmpi
from fedmpi.errors import UsageError
from fedmpi.spdz.traffic import Traffic, since, total

N = 6 * 6 * 8
"""Bytes of a share of a 6 x 6 matrix."""


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_a_product(parties: int) -> None:
    with fedmpi.simulate(parties) as workers:
        x, w = (fedmpi.share(torch.rand(6, 6), *workers) for _ in range(2))
        before = fedmpi.traffic(*workers)
        x @ w
        after = since(before, fedmpi.traffic(*workers))
        # To all others directly, or by way of the first party.
        sent = parties * (parties - 1) if parties <= 3 else 2 * (parties - 1)
        assert {t.operator: t for t in after} == {
            "mask": Traffic("mask", 2, 2, 2 * sent * N, 0),
            # The correction of what the truncation needs: 8 bytes and 2 for an element.
            "scaled_product": Traffic("scaled_product", 1, 1, sent * N, N + N // 4),
        }
        assert total(after, "all") == Traffic("all", 3, 3, 3 * sent * N, N + N // 4)


def test_nothing_was_shared_yet() -> None:
    with fedmpi.simulate(2) as workers:
        assert fedmpi.traffic(*workers) == []
        with pytest.raises(UsageError, match="at least 2 different workers"):
            fedmpi.traffic(workers[0])
