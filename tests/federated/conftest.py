"""Every transport, and a dataset with a client that cannot be trained, for this folder's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import Recipe
from tests.comm.worlds import folder, world
from tests.federated.lab import BAD

__all__ = ["folder", "world"]


@pytest.fixture
def spoiled(tmp_path: Path) -> Recipe:
    """Five clients by name, of which client BAD holds values that no training survives."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    site = np.arange(200) % 5
    x[site == BAD] *= 1e20
    np.savez(tmp_path / "spoiled.npz", x=x, y=np.arange(200) % 3, site=site)
    source = str(tmp_path / "spoiled.npz")
    return Recipe(source=source, partition="natural", by="site", normalise="none")
