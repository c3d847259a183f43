"""HDF5 files that carry what they are: written whole or not at all, checked when opened."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

import fedmpi
from fedmpi.data.files import atomic, no_link, reading, reason
from fedmpi.errors import DataError, ForeignFileError

# HDF5 1.10 is the oldest that clusters still have; newer libraries read this too.
LIBVER = ("earliest", "v110")


class _Disk(io.FileIO):
    """A file that HDF5 writes through: it keeps the first error and pretends success.

    HDF5 crashes the process when it cannot flush its metadata on a full disk (seen with
    h5py 3.16 at the interpreter's exit). So it never hears of an error; `create` raises
    the kept one as soon as HDF5 has closed the file.
    """

    error: OSError | None = None

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Writes all of `data`, which a single system call may not, unless an error is kept."""
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Grows or shrinks the file; a failure is kept like that of a write."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextmanager
def create(path: str | Path, kind: str, version: int = 1, mode: int = 0o666) -> Iterator[h5py.File]:
    """An HDF5 file that appears under `path` only when the block succeeds.

    Args:
        path: the file to write, in a folder that exists; an old one is replaced.
        kind: what the file is, such as "fedmpi-shard"; its attribute `format`.
        version: of that format.
        mode: permissions that it has from the start, as far as the umask leaves them.

    Yields:
        The open file, with the attributes `format`, `version` and `created_by`.

    Raises:
        DataError: the file cannot be written; the sentence has the file and the reason.
    """
    with atomic(path, mode) as temporary, _Disk(temporary, "r+", opener=no_link) as disk:
        try:
            with h5py.File(disk, "w", libver=LIBVER) as file:
                put_attribute(file, "format", kind)
                file.attrs["version"] = version
                put_attribute(file, "created_by", f"FedMPI {fedmpi.__version__}")
                yield file
        finally:
            if disk.error is not None:
                raise disk.error


def open_file(path: str | Path) -> h5py.File:
    """Opens any HDF5 file for reading. Raises `DataError` if it is missing, foreign or damaged."""
    try:
        # Nobody writes to a finished file, and many cluster file systems cannot lock.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno:
            raise DataError(f"cannot read {path}: {reason(error)}") from error
        found = str(error)
        if "truncated" in found:
            raise DataError(f"{path} is truncated: expected a whole HDF5 file") from error
        if "signature not found" in found:
            raise DataError(f"{path} is not an HDF5 file") from error
        raise DataError(f"{path} is a damaged HDF5 file: {reason(error)}") from error


def open_checked(path: str | Path, kind: str, version: int = 1) -> h5py.File:
    """Opens one of FedMPI's files for reading; use it in a `with` statement.

    Args:
        path: the file.
        kind: the attribute `format` that it must have.
        version: the newest version that the caller understands.

    Raises:
        DataError: the file is missing, not HDF5, or truncated.
        ForeignFileError: it is of another format, or newer.
    """
    file = open_file(path)
    try:
        with reading(path):
            found, newest, author = (
                attribute(file, name) for name in ("format", "version", "created_by")
            )
            if found != kind:
                older = found is None and "format" in file.attrs
                hint = "; an earlier FedMPI may have written it: make it again" if older else ""
                raise ForeignFileError(
                    f"{path}: expected the format {kind!r}, found {found!r}{hint}"
                )
            if not isinstance(newest, int) or not 1 <= newest <= version:
                raise ForeignFileError(
                    f"{path}: expected {kind} version {version} or older, found version "
                    f"{newest!r:.80}; read it with the FedMPI that wrote it ({author!r:.80})"
                )
    except DataError:
        file.close()
        raise
    return file


def attribute(of: h5py.HLObject, name: str) -> str | int | None:
    """An attribute that is a word or a whole number; None if there is none, or it is anything else.

    A hostile file may hold an array there, which compares as nothing else does. And HDF5 crashes
    or does not come to an end when it follows a damaged reference to a value of any length, so the
    type comes first: a word has to be one that `put_attribute` has written.
    """
    if name not in of.attrs:
        return None
    kind = of.attrs.get_id(name).dtype
    if kind.kind not in "iu" and getattr(h5py.check_string_dtype(kind), "length", None) is None:
        return None
    found = of.attrs[name]
    if isinstance(found, bytes):
        return found.decode("utf-8", "replace")
    return int(found) if isinstance(found, np.integer) else None


def put_attribute(of: h5py.HLObject, name: str, word: str) -> None:
    """Writes a word for `attribute`, of a length of its own and without a reference."""
    raw = word.encode()
    of.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", len(raw)))


def inner_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name`, whose bytes must lie in `file` itself, in whatever layout.

    Links, external and virtual storage would let a file hand out the contents of another one.

    Raises:
        DataError: there is no such dataset, or it is elsewhere.
    """
    where = f"{file.filename}: /{name}"
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:depth]), getlink=True)
        if link is None:
            raise DataError(f"{where} is missing")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{where} is a link to elsewhere: expected a dataset in this file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is a group: expected a dataset")
    if dataset.external is not None or dataset.is_virtual:
        raise DataError(f"{where} keeps its data in another file: expected it in this one")
    return dataset


def plain_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """An `inner_dataset`, contiguous and unfiltered, as FedMPI writes all of them.

    Raises:
        DataError: as `inner_dataset`, or it is stored in another way.
    """
    dataset = inner_dataset(file, name)
    where = f"{file.filename}: /{name}"
    if dataset.chunks is not None:
        raise DataError(f"{where} is chunked or compressed: expected a contiguous dataset")
    # What was never written takes no room, however large it claims to be, and reads as zeros.
    if dataset.shape is None or dataset.id.get_storage_size() != dataset.nbytes:
        raise DataError(f"{where} has no contents of the size that it claims: {dataset.shape}")
    return dataset
