from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data import source as source_module
from fedmpi.data.source import Source
from fedmpi.data.sources import open_source
from fedmpi.errors import DataError

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 2


def save(path: Path, **arrays: Any) -> Recipe:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                if array.dtype.kind == "U":
                    array = array.astype(h5py.string_dtype())
                file.create_dataset(name, data=array, chunks=True, compression="gzip")
    return Recipe(str(path))


def rows(source: Source, split: Any = "train", count: int = 6) -> np.ndarray:
    return np.concatenate([x for x, _ in source.blocks(split, rows=count)])


@pytest.fixture(params=["own.npz", "own.h5", "own.hdf5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_rows_are_held_out(path: Path) -> None:
    source = open_source(save(path, x=X, y=Y))
    assert (source.name, source.task, source.classes) == (path.name, "classification", 2)
    assert (source.train_rows, source.test_rows) == (16, 4)
    assert source.held_out is not None
    assert np.array_equal(rows(source), X[~source.held_out])
    assert np.array_equal(rows(source, "test"), X[source.held_out])


def test_a_test_set(path: Path) -> None:
    recipe = save(path, x=X, y=Y.astype(np.float64), x_test=X[:5] + 1, y_test=np.ones(5))
    source = open_source(recipe)
    assert (source.task, source.classes, source.dtype) == ("regression", 0, np.float32)
    assert (source.train_rows, source.test_rows) == (20, 5)
    assert np.array_equal(rows(source), X)
    assert np.array_equal(rows(source, "test"), X[:5] + 1)
    assert source.labels().dtype == np.float32


@pytest.mark.parametrize("values", [np.arange(20) // 5, np.array(["ä", "b"])[np.arange(20) % 2]])
def test_columns(path: Path, values: np.ndarray) -> None:
    source = open_source(save(path, x=X, y=Y, writer=values))
    assert source.held_out is not None
    assert source.column("writer").tolist() == values[~source.held_out].tolist()


def test_grey_images_get_a_channel(path: Path) -> None:
    source = open_source(save(path, x=np.zeros((20, 8, 9), np.uint8), y=Y))
    assert source.row_shape == (1, 8, 9)
    assert source.images
    assert rows(source).shape == (16, 1, 8, 9)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i8", "bool", "uint16"])
def test_types_become_float32(path: Path, dtype: str) -> None:
    source = open_source(save(path, x=(X % 2).astype(dtype), y=Y))
    assert source.held_out is not None
    found = rows(source)
    assert found.dtype == np.float32
    assert np.array_equal(found, (X % 2)[~source.held_out])


def test_blocks_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    source = open_source(save(path, x=x, y=np.arange(1000) % 2))
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 120)
    blocks = list(source.blocks("train"))
    assert max(len(x) for x, _ in blocks) <= 10
    assert source.held_out is not None
    assert np.array_equal(np.concatenate([x for x, _ in blocks]), x[~source.held_out])


NAN = X.copy()
NAN[[7, 9], 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no y: expected arrays x and y, found x"),
        ({"x": X, "y": Y[:-1]}, "x has 20 rows but its labels have 19"),
        ({"x": X, "y": Y - 1}, r"y\[0\] is -1: expected labels from 0 up"),
        ({"x": X, "y": Y * 2}, "labels go up to 2 but no row has label 1"),
        ({"x": X, "y": np.where(Y, np.nan, 1.0)}, r"y\[1\] is NaN"),
        ({"x": X, "y": Y[:, None]}, r"y is int64 \[20, 1\]|y is int64 \[0, 0\]"),
        ({"x": X[:, 0], "y": Y}, r"x is float32 \[20\]: expected numbers"),
        ({"x": X[:1], "y": Y[:1]}, "has 1 row: expected at least 2"),
        ({"x": X[:0], "y": Y[:0]}, r"x is float32 \[0, 3\]"),
        ({"x": X, "y": Y, "x_test": X}, "x_test needs y_test"),
        ({"x": X, "y": Y, "y_test": Y}, "y_test needs x_test"),
        ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, r"row of x_test is float32 \[2\]"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y * 0.5}, "y is int64 but y_test is float64"),
        ({"x": X.astype("S3"), "y": Y}, r"x is \|?S3 \[20, 3\]"),
    ],
)
def test_refusals(path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(save(path, **arrays))


def test_the_first_row_with_nan_is_named(path: Path) -> None:
    with pytest.raises(DataError, match=r"x\[7\] holds NaN, infinity"):
        rows(open_source(save(path, x=NAN, y=Y)))
    with pytest.raises(DataError, match=r"x_test\[7\] holds NaN, infinity"):
        rows(open_source(save(path, x=X, y=Y, x_test=NAN, y_test=Y)), "test")
    with pytest.raises(DataError, match=r"x\[0\] holds NaN, infinity or a value beyond float32"):
        rows(open_source(save(path, x=X.astype(np.float64) + 1e39, y=Y)))


@pytest.mark.parametrize("values", [np.linspace(0, 1, 20), np.arange(19)])
def test_columns_that_cannot_name_clients(path: Path, values: np.ndarray) -> None:
    source = open_source(save(path, x=X, y=Y, site=values))
    with pytest.raises(DataError, match=r"column site is .*: expected integers or strings \[20\]"):
        source.column("site")


def test_missing_and_foreign_files(path: Path) -> None:
    with pytest.raises(DataError, match=f"{path}: No such file"):
        open_source(Recipe(str(path)))
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=str(path)):
        open_source(Recipe(str(path)))


def test_truncated_file(path: Path) -> None:
    recipe = save(path, x=np.random.default_rng(0).random((2000, 3)), y=np.arange(2000) % 2)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=str(path)):
        rows(open_source(recipe))


def test_flipped_bit_in_npz(tmp_path: Path) -> None:
    recipe = save(tmp_path / "own.npz", x=np.random.default_rng(0).random((2000, 3)), y=Y[:2000])
    data = bytearray((tmp_path / "own.npz").read_bytes())
    data[5000] ^= 1
    (tmp_path / "own.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"own.npz"):
        rows(open_source(recipe))


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.array([{}] * 20, object).reshape(20, 1), y=Y)
    with pytest.raises(DataError, match="x holds Python objects"):
        open_source(Recipe(str(path)))


def test_fortran_order_cannot_be_streamed(tmp_path: Path) -> None:
    recipe = save(tmp_path / "own.npz", x=np.asfortranarray(X), y=Y)
    with pytest.raises(DataError, match=r"Fortran order: save np.ascontiguousarray\(x\)"):
        open_source(recipe)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"no array")
    with pytest.raises(DataError, match=r"own\.npz"):
        open_source(Recipe(str(path)))
