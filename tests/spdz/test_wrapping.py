"""Words that wrap: large values, where a sum of words passes 2^63 in most elements."""

from __future__ import annotations

import pytest
import torch

import fedmpi as fm


@pytest.mark.parametrize("parties", [2, 3])
def test_choices_by_signs_of_large_products_are_exact(parties: int) -> None:
    """A compiled kernel in which a sum of signed words wrapped got one in a thousand wrong."""
    torch.manual_seed(parties)
    x, y = ((torch.rand(20_000) - 0.5) * 2**13.4 for _ in range(2))
    with fm.simulate(workers=parties) as workers:
        product = fm.share(x, *workers) * fm.share(y, *workers)
        found = product.reveal()
        torch.testing.assert_close(found, x * y, atol=1.0, rtol=1e-6)
        assert torch.equal(torch.relu(product).reveal(), torch.relu(found))
        assert torch.equal((product < 0).reveal(), found < 0)
        assert torch.equal(torch.minimum(product, -product).reveal(), -found.abs())
