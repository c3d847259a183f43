"""The user's own data: an .npz or HDF5 file with x, y and, if there are, x_test, y_test."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from fedmpi.config import Recipe
from fedmpi.data.files import reading
from fedmpi.data.hdf5 import open_file
from fedmpi.data.rows import Array, Hdf5Rows, Rows, StreamedRows
from fedmpi.data.source import Source, make_source
from fedmpi.errors import DataError

SUFFIXES = (".npz", ".h5", ".hdf5")
RESERVED = ("x", "y", "x_test", "y_test")


@dataclass(frozen=True)
class OwnFile:
    """How a file's arrays are listed, streamed and loaded."""

    names: list[str]
    rows: Callable[[str], Rows]
    load: Callable[[str], Array]


def open_own_file(recipe: Recipe) -> Source:
    """Opens the file at `recipe.source`; every further array is a column for `by`.

    Raises:
        DataError: missing, damaged, without x or y, or with values that do not fit.
    """
    path = Path(recipe.source)
    file = _npz(path) if path.suffix == ".npz" else _hdf5(path)
    for name in ("x", "y"):
        if name not in file.names:
            raise DataError(
                f"{path} has no {name}: expected arrays x and y, found "
                f"{', '.join(file.names) or 'none'}"
            )

    def loader(name: str) -> Callable[[], Array]:
        return lambda: file.load(name)

    return make_source(
        recipe,
        path.name,
        file.rows("x"),
        file.load("y"),
        file.rows("x_test") if "x_test" in file.names else None,
        file.load("y_test") if "y_test" in file.names else None,
        columns={name: loader(name) for name in file.names if name not in RESERVED},
    )


def _npz(path: Path) -> OwnFile:
    with reading(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]

    @contextmanager
    def at_first_row(name: str) -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            _read_npy_header(stream)
            yield stream

    def rows(name: str) -> Rows:
        where = f"{path}: {name}"
        with (
            reading(where),
            zipfile.ZipFile(path) as archive,
            archive.open(f"{name}.npy") as stream,
        ):
            shape, fortran_order, dtype = _read_npy_header(stream)
        if dtype.hasobject:
            raise DataError(f"{where} holds Python objects: expected numbers or strings")
        if fortran_order and len(shape) > 1:
            raise DataError(f"{where} is in Fortran order: save np.ascontiguousarray({name})")
        return StreamedRows(where, lambda: at_first_row(name), shape, dtype)

    def load(name: str) -> Array:
        table = rows(name)
        if len(table.shape) != 1:  # refused by whoever needs it, who knows what was expected
            return np.empty((0,) * len(table.shape), table.dtype)
        empty = np.empty(0, table.dtype)
        return np.concatenate([empty, *table.blocks(max(1, table.shape[0]))])

    return OwnFile(names, rows, load)


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a .npy stream, which is then at the first row."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the .npy format; expected numbers or plain strings")


def _hdf5(path: Path) -> OwnFile:
    with reading(path), open_file(path) as file:
        names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]

    def rows(name: str) -> Rows:
        with reading(path), open_file(path) as file:
            return Hdf5Rows(path, name, file[name].shape, file[name].dtype)

    def load(name: str) -> Array:
        with reading(path), open_file(path) as file:
            dataset = file[name]
            if h5py.check_string_dtype(dataset.dtype):
                return np.array(dataset.asstr()[()], dtype=np.str_)
            values: Array = dataset[()]
            return values

    return OwnFile(names, rows, load)
