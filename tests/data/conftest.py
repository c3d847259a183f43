"""Small datasets that the tests of `fedmpi.data` share."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data.index import Index
from fedmpi.workers.shards import prepare

SaveNpz = Callable[..., Recipe]


@pytest.fixture
def save_npz(tmp_path: Path) -> SaveNpz:
    """Saves arrays as own.npz and gives a recipe of it: 4 clients unless told otherwise."""

    def save(recipe: dict[str, object] | None = None, **arrays: object) -> Recipe:
        path = tmp_path / "own.npz"
        np.savez(path, **arrays)
        return Recipe(**{"source": str(path), "clients": 4, **(recipe or {})})

    return save


@pytest.fixture
def numbered(save_npz: SaveNpz) -> Recipe:
    """200 rows whose every value is the row's number, 5 classes, so that rows can be traced."""
    x = np.repeat(np.arange(200, dtype=np.float32)[:, None], 3, axis=1)
    recipe = {"clients": 20, "partition": "dirichlet", "normalise": "none"}
    return save_npz(recipe, x=x, y=np.arange(200) % 5)


@pytest.fixture
def prepared(numbered: Recipe, tmp_path: Path) -> tuple[Path, Index]:
    """The numbered rows in 3 shards."""
    folder = tmp_path / "dataset"
    return folder, prepare(numbered, 3, folder)


@pytest.fixture
def write_idx() -> Callable[..., None]:
    """Writes an array of unsigned bytes as an IDX file, gzipped if its name says so."""

    def write(path: Path, array: np.ndarray) -> None:
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        data = header + array.astype(np.uint8).tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    return write
