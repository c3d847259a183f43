"""The IDX files of the MNIST family, plain or gzipped, read as a stream."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from fedmpi.data.files import reading
from fedmpi.data.rows import StreamedRows
from fedmpi.errors import DataError


def find_idx(folder: Path, stem: str) -> Path | None:
    """The file `stem` or `stem.gz` in `folder`, or None."""
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def idx_rows(path: Path, dimensions: int) -> StreamedRows:
    """The rows of an IDX file of unsigned bytes.

    Args:
        path: the file; gzipped if its name ends in .gz.
        dimensions: that the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: missing, damaged, or not such a file.
    """
    with reading(path), _open(path) as stream:
        shape = _read_header(path, stream, dimensions)

    @contextmanager
    def at_first_row() -> Iterator[IO[bytes]]:
        with _open(path) as stream:
            _read_header(path, stream, dimensions)
            yield stream

    return StreamedRows(str(path), at_first_row, shape, np.dtype(np.uint8))


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        yield cast(IO[bytes], stream)


def _read_header(path: Path, stream: IO[bytes], dimensions: int) -> tuple[int, ...]:
    """Reads two zero bytes, the type (8: unsigned byte), the dimensions and their sizes."""
    expected = bytes([0, 0, 8, dimensions])
    magic = stream.read(4)
    if magic != expected:
        raise DataError(
            f"{path} is not an IDX file of {dimensions} dimensions: "
            f"expected it to begin with {expected.hex()}, found {magic.hex() or 'nothing'}"
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise DataError(f"{path} is truncated: it ends inside its header")
    return struct.unpack(f">{dimensions}I", sizes)
