from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data import memory as memory_module
from fedmpi.data import source as source_module
from fedmpi.data.rows import Hdf5Rows, StreamedRows
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


def no_rows_read(patch: pytest.MonkeyPatch) -> None:
    for kind in (Hdf5Rows, StreamedRows):
        patch.setattr(kind, "blocks", lambda *args: pytest.fail("rows were read"))


ELSEWHERE = ["external link", "soft link", "external storage", "virtual"]


def elsewhere(path: Path, name: str, how: str) -> None:
    """Has a dataset of the file come from another place."""
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["y"] = Y
    path.with_name("raw").write_bytes(Y.tobytes())
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        match how:
            case "external link":
                file[name] = h5py.ExternalLink("other.h5", "/y")
            case "soft link":
                file[name] = h5py.SoftLink("/spare")
            case "external storage":
                where = [(str(path.with_name("raw")), 0, Y.nbytes)]
                file.create_dataset(name, Y.shape, Y.dtype, external=where)
            case "virtual":
                layout = h5py.VirtualLayout(Y.shape, Y.dtype)
                layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "y", Y.shape)
                file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("how", ELSEWHERE)
@pytest.mark.parametrize("name", ["x", "y", "x_test", "y_test"])
def test_rows_that_lie_elsewhere_are_refused(tmp_path: Path, name: str, how: str) -> None:
    recipe = save(tmp_path / "own.h5", x=X, y=Y, x_test=X, y_test=Y, spare=Y)
    elsewhere(tmp_path / "own.h5", name, how)
    with pytest.raises(DataError, match=rf"own\.h5: /{name} (is a link to elsewhere|keeps its)"):
        open_source(recipe)


@pytest.mark.parametrize("how", ELSEWHERE)
def test_a_column_that_lies_elsewhere_is_refused(tmp_path: Path, how: str) -> None:
    recipe = save(tmp_path / "own.h5", x=X, y=Y, spare=Y)
    elsewhere(tmp_path / "own.h5", "site", how)
    source = open_source(recipe)
    with pytest.raises(DataError, match=r"own\.h5: /site (is a link to elsewhere|keeps its data)"):
        source.column("site")


def claiming(path: Path, shapes: dict[str, tuple[tuple[int, ...], str]]) -> Recipe:
    """A small file whose arrays claim any size."""
    if path.suffix != ".npz":
        with h5py.File(path, "w") as file:
            for name, (shape, dtype) in shapes.items():
                chunks = tuple(min(n, 1024) for n in shape)
                file.create_dataset(name, shape, dtype, chunks=chunks)
        return Recipe(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for name, (shape, dtype) in shapes.items():
            with archive.open(f"{name}.npy", "w") as member:
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
    return Recipe(str(path))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": ((20, 3), "f4"), "y": ((2**28,), "i8")}, "x has 20 rows but its labels have 268435"),
        ({"x": ((20, 3), "f4"), "y": ((2**20, 2**20), "i8")}, r"y is int64 \[1048576, 1048576\]"),
        ({"x": ((2**40, 3), "f4"), "y": ((2**40,), "i1")}, "own.*: y needs about .* of memory"),
        ({"x": ((20, 2**40), "f4"), "y": ((20,), "i8")}, "own.*: a row of x needs about"),
        (
            {"x": ((20, 3), "f4"), "y": ((20,), "i8"), "y_test": ((2**28,), "i8")},
            "y_test needs x_test",
        ),
    ],
)
def test_a_small_file_that_claims_much_is_refused_unread(
    path: Path,
    shapes: dict[str, tuple[tuple[int, ...], str]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = claiming(path, shapes)
    assert path.stat().st_size < 10_000
    no_rows_read(monkeypatch)
    with pytest.raises(DataError, match=message):
        open_source(recipe)


def test_a_column_that_claims_much_is_refused_unread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(save(path, x=X, y=Y, site=np.zeros(2**20, np.int8)))
    no_rows_read(monkeypatch)
    with pytest.raises(DataError, match=r"column site is int8 \[1048576\]: expected integers"):
        source.column("site")


def test_strings_that_do_not_fit_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long string makes all of them as wide."""
    sites = np.array(["a"] * 19 + ["b" * 100_000])
    source = open_source(save(path, x=X, y=Y, site=sites))
    monkeypatch.setattr(memory_module, "available_memory", lambda: 2**20)
    with pytest.raises(DataError, match=r"column site needs about .* MiB of memory, and 1,024 KiB"):
        source.column("site")


def test_a_chunk_that_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"] = X
        file.create_dataset("y", (20,), "i8", chunks=(2**24,), maxshape=(None,), compression="gzip")
    monkeypatch.setattr(memory_module, "available_memory", lambda: 2**27)
    with pytest.raises(DataError, match=r"own\.h5: a chunk of /y needs about 256 MiB of memory"):
        open_source(Recipe(str(tmp_path / "own.h5")))


def test_a_header_of_any_length_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        for name in ("x", "y"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}")
    with pytest.raises(DataError, match=r"own\.npz: x: version \(2, 0\) of the .npy format"):
        open_source(Recipe(str(tmp_path / "own.npz")))


def test_hdf5_without_a_shape_or_with_odd_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"], file["y"] = X, h5py.Empty("i8")
        file["\x1b[2J"] = Y
    with pytest.raises(DataError, match=r"y is int64 \[\]: expected"):
        open_source(Recipe(str(tmp_path / "own.h5")))
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        del file["y"]
    with pytest.raises(DataError, match=r"has no y: expected arrays x and y, found x$"):
        open_source(Recipe(str(tmp_path / "own.h5")))


def test_strings_of_a_fixed_length_are_a_column(tmp_path: Path) -> None:
    recipe = save(tmp_path / "own.h5", x=X, y=Y, site=np.array([b"ab", b"c"])[Y])
    source = open_source(recipe)
    assert source.held_out is not None
    assert source.column("site").tolist() == np.array(["ab", "c"])[Y][~source.held_out].tolist()
