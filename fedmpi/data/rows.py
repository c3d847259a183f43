"""Rows read one block after another, wherever they lie: in memory, in a stream, in HDF5."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from fedmpi.data.files import reading
from fedmpi.data.hdf5 import inner_dataset, open_file
from fedmpi.data.memory import require_memory
from fedmpi.errors import DataError

Array = NDArray[Any]

_VECTOR_BLOCK = 2**16
_COPIES = 4
"""Of a vector that is in memory at once: labels are converted, sorted and drawn from."""


class Rows(Protocol):
    """An array [rows, ...] that is read in order and need not fit into memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then the shape of a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type as stored."""

    def blocks(self, rows: int) -> Iterator[Array]:
        """All rows in order, at most `rows` at a time. Raises `DataError` if damaged."""


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Rows of an array in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def blocks(self, rows: int) -> Iterator[Array]:
        for start in range(0, len(self.array), rows):
            yield self.array[start : start + rows]


@dataclass(frozen=True)
class StreamedRows:
    """Rows in C order in a stream that may be compressed, such as a .gz file or a zip member.

    Attributes:
        where: the file, for messages.
        open: opens the stream at the first row.
        shape: number of rows, then the shape of a row.
        dtype: type as stored.
    """

    where: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def blocks(self, rows: int) -> Iterator[Array]:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with reading(self.where), self.open() as stream:
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                data = stream.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise DataError(
                        f"{self.where} is truncated: expected {self.shape[0]} rows, "
                        f"found {start + len(data) // row_bytes}"
                    )
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
            # Only at the end do zip and gzip compare their checksum.
            if stream.read(1):
                raise DataError(
                    f"{self.where} is damaged: expected {self.shape[0]} rows, found more data"
                )


@dataclass(frozen=True)
class Hdf5Rows:
    """Rows of a dataset in an HDF5 file of the user's own, chunked and compressed or not.

    Strings are rows of any length; their dtype says no more than that they are strings.
    """

    path: Path
    dataset: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def blocks(self, rows: int) -> Iterator[Array]:
        with reading(self.path), open_file(self.path) as file:
            dataset = inner_dataset(file, self.dataset)
            if h5py.check_string_dtype(dataset.dtype):
                for start in range(0, self.shape[0], rows):
                    yield np.array(dataset.asstr()[start : start + rows], dtype=np.str_)
                return
            for start in range(0, self.shape[0], rows):
                yield dataset[start : start + rows]


def vector(rows: Rows, where: str) -> Array:
    """All of an array [rows], such as labels.

    Raises:
        DataError: it is damaged, or needs more memory than there is; begins with `where`.
    """
    count = rows.shape[0]
    require_memory(_COPIES * count * max(8, rows.dtype.itemsize), where)
    blocks = [np.empty(0, rows.dtype)]
    for block in rows.blocks(_VECTOR_BLOCK):
        # The longest string decides how wide all of them are.
        require_memory(_COPIES * count * block.dtype.itemsize, where)
        blocks.append(block)
    return np.concatenate(blocks)
