"""A few hundred inputs of each kind; `make fuzz` reads 20,000."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_errors_are_our_own(name: str) -> None:
    refused, read, _ = fuzz(name, 0, INPUTS)
    assert refused + read == INPUTS
    assert refused > INPUTS // 10
