from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data import source as source_module
from fedmpi.data.normalise import Normalisation, measure
from fedmpi.data.sources import open_source
from fedmpi.errors import UsageError

SaveNpz = Callable[..., Recipe]
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (300, 3, 4, 5), dtype=np.uint8)
TABLE = (RNG.normal(size=(300, 4)) * [1, 1e-3, 100, 0] + [0, 5, 1e6, 3]).astype(np.float32)
LABELS = np.arange(300) % 3


def training_rows(recipe: Recipe) -> np.ndarray:
    return np.concatenate([x for x, _ in open_source(recipe).blocks("train")])


def test_auto_scales_images_to_one(save_npz: SaveNpz) -> None:
    found = measure(open_source(save_npz(x=IMAGES, y=LABELS)), "auto")
    assert found == Normalisation("unit", (0.0,), (255.0,))
    assert np.array_equal(found.x(IMAGES), IMAGES.astype(np.float32) / np.float32(255))
    assert found.y(LABELS).dtype == np.int64


def test_auto_standardises_a_table(save_npz: SaveNpz, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = save_npz(x=TABLE, y=LABELS)
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 16 * 7)  # many blocks of 7 rows
    found = measure(open_source(recipe), "auto")
    rows = training_rows(recipe).astype(np.float64)
    assert found.kind == "standard"
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std[:3], rows.std(axis=0)[:3], rtol=1e-5)
    assert found.std[3] == 1  # a constant feature stays where it is
    out = found.x(training_rows(recipe))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.std(axis=0), [1, 1, 1, 0], atol=1e-3)


def test_standard_is_per_channel_for_images(save_npz: SaveNpz) -> None:
    recipe = save_npz(x=IMAGES, y=LABELS)
    found = measure(open_source(recipe), "standard")
    rows = training_rows(recipe).astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.std, rows.std(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.x(IMAGES).mean(axis=(0, 2, 3)), 0, atol=0.1)


def test_targets_are_standardised(save_npz: SaveNpz) -> None:
    recipe = save_npz(x=TABLE, y=TABLE[:, 1] * 1000)
    source = open_source(recipe)
    found = measure(source, "auto")
    out = found.y(source.labels())
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(0, abs=1e-4)
    assert out.std() == pytest.approx(1, abs=1e-4)
    assert measure(source, "none") == Normalisation()


def test_none_changes_nothing(save_npz: SaveNpz) -> None:
    found = measure(open_source(save_npz(x=TABLE, y=LABELS)), "none")
    assert np.array_equal(found.x(TABLE), TABLE)


def test_unit_needs_pixels(save_npz: SaveNpz) -> None:
    with pytest.raises(UsageError, match=r"normalise = 'unit'.*has float32 values"):
        measure(open_source(save_npz(x=TABLE, y=LABELS)), "unit")


def test_the_input_is_not_changed() -> None:
    rows = TABLE.copy()
    Normalisation("standard", (1.0,), (2.0,)).x(rows)
    assert np.array_equal(rows, TABLE)
