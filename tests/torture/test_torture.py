"""A few of the runs of `make torture`, a different kind of fault each."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.torture.__main__ import can_mount, torture
from tests.torture.cases import KINDS, draw

pytestmark = pytest.mark.launch


QUICK = ("kill", "raise", "corrupt")
"""Kinds that every run of the tests has; the others are marked long."""


@pytest.mark.parametrize(
    "kind",
    [k if k in QUICK else pytest.param(k, marks=pytest.mark.long) for k in sorted(set(KINDS))],
)
def test_a_run_with_a_fault_ends_right(kind: str) -> None:
    full_disks = can_mount()
    if kind == "fill" and not full_disks:
        pytest.skip("no small file system can be mounted here")
    [number, *_] = [n for n in range(1000) if draw(n, full_disks).kind == kind]
    rows = torture(number, 1, Console())
    assert rows[kind].wrong == []
