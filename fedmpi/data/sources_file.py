"""The user's own data: an .npz or HDF5 file with x, y and, if there are, x_test, y_test."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from fedmpi.config import Recipe
from fedmpi.data.files import reading
from fedmpi.data.hdf5 import inner_dataset, open_file
from fedmpi.data.memory import require_memory
from fedmpi.data.rows import Hdf5Rows, Rows, StreamedRows
from fedmpi.data.source import Source, make_source
from fedmpi.errors import DataError

SUFFIXES = (".npz", ".h5", ".hdf5")
RESERVED = ("x", "y", "x_test", "y_test")


@dataclass(frozen=True)
class OwnFile:
    """What arrays a file has, and where the rows of one are; neither reads any of them."""

    names: list[str]
    rows: Callable[[str], Rows]


def open_own_file(recipe: Recipe) -> Source:
    """Opens the file at `recipe.source`; every further array is a column for `by`.

    Raises:
        DataError: missing, damaged, without x or y, with links to elsewhere, or with values
            that do not fit, together or into memory.
    """
    path = Path(recipe.source)
    file = _npz(path) if path.suffix == ".npz" else _hdf5(path)
    names = [name for name in file.names if name.isprintable()]
    for name in ("x", "y"):
        if name not in names:
            raise DataError(
                f"{path} has no {name}: expected arrays x and y, found {', '.join(names) or 'none'}"
            )
    return make_source(
        recipe,
        path.name,
        file.rows("x"),
        file.rows("y"),
        file.rows("x_test") if "x_test" in names else None,
        file.rows("y_test") if "y_test" in names else None,
        columns={name: partial(file.rows, name) for name in names if name not in RESERVED},
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

    return OwnFile(names, rows)


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a .npy stream, which is then at the first row."""
    version = np.lib.format.read_magic(stream)
    # The headers of all newer versions may be of any length, and numbers and strings need none.
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format; expected numbers or plain strings")
    return np.lib.format.read_array_header_1_0(stream)


def _hdf5(path: Path) -> OwnFile:
    with reading(path), open_file(path) as file:
        names = [name for name in file if not _is_group(file, name)]

    def rows(name: str) -> Rows:
        with reading(path), open_file(path) as file:
            dataset = inner_dataset(file, name)
            # A chunk is read as a whole, however small it is in the file.
            chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
            require_memory(2 * chunk, f"{path}: a chunk of /{name}")
            any_length = getattr(h5py.check_string_dtype(dataset.dtype), "length", 1) is None
            dtype = np.dtype(np.str_) if any_length else dataset.dtype
            return Hdf5Rows(path, name, dataset.shape or (), dtype)

    return OwnFile(names, rows)


def _is_group(file: h5py.File, name: str) -> bool:
    """Whether it is one, without following links: those are refused when they are used."""
    link = file.get(name, getlink=True)
    return isinstance(link, h5py.HardLink) and file.get(name, getclass=True) is h5py.Group
