"""A worker's shard: its clients and their rows, normalised, with a cache of bounded size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.data.files import nothing, reading, sha256
from fedmpi.data.hdf5 import attribute, open_checked, plain_dataset
from fedmpi.data.index import Index
from fedmpi.data.normalise import Normalisation
from fedmpi.errors import DataError

SHARD_FORMAT = "fedmpi-shard"
TEST_FORMAT = "fedmpi-test"

Batch = tuple[torch.Tensor, torch.Tensor]
"""x float32 [n, *row_shape] and y int64 (classes) or float32 (targets) [n]."""

_Y_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class ShardArrays:
    """A shard in memory, raw: what a scatter sends to a worker.

    Attributes:
        x: uint8 or float32 [rows, *row_shape].
        y: int64 or float32 [rows].
        client_id: int64 [c], ascending.
        client_offset: int64 [c + 1]; client i has the rows offset[i] to offset[i + 1].
    """

    x: NDArray[Any]
    y: NDArray[Any]
    client_id: NDArray[np.int64]
    client_offset: NDArray[np.int64]


class Shard:
    """The clients of one worker. Make it with `open_shard` or `shard_from_arrays`.

    A client is read when it is asked for, so that a shard may be larger than memory.

    Attributes:
        name: the file, for messages.
        ids: its clients, ascending.
    """

    def __init__(
        self,
        name: str,
        x: Any,
        y: Any,
        client_id: NDArray[np.int64],
        client_offset: NDArray[np.int64],
        normalisation: Normalisation,
        cache_mib: int,
        file: h5py.File | None = None,
    ) -> None:
        """Takes rows `x` and labels `y`, arrays or HDF5 datasets, and closes `file` in the end."""
        self.name = name
        self.ids: list[int] = client_id.tolist()
        self._x, self._y, self._file = x, y, file
        self._offset: list[int] = client_offset.tolist()
        self._place = {client: i for i, client in enumerate(self.ids)}
        self._normalisation = normalisation
        self._cache: OrderedDict[int, Batch] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_mib * 2**20
        self._lock = threading.Lock()

    def rows(self, client: int) -> int:
        """Number of rows of a client. Raises `DataError` if it is not in this shard."""
        first, last = self._range(client)
        return last - first

    def load(self, client: int) -> Batch:
        """The normalised rows of a client, in the order of the source.

        Args:
            client: one of `ids`.

        Returns:
            x float32 [n, *row_shape] and y int64 or float32 [n]. The cache may hold the
            same tensors: do not write into them.

        Raises:
            DataError: the client is not in this shard, or its rows are damaged.
        """
        with self._lock:
            if client in self._cache:
                self._cache.move_to_end(client)
                return self._cache[client]
            batch = self._read(client)
            self._keep(client, batch)
            return batch

    def close(self) -> None:
        """Closes the file and forgets the cache; the tensors handed out stay valid."""
        with self._lock:
            self._cache.clear()
            self._cached_bytes = 0
            if self._file is not None:
                self._file.close()

    def _range(self, client: int) -> tuple[int, int]:
        place = self._place.get(client)
        if place is None:
            raise DataError(f"{self.name} has no client {client}")
        return self._offset[place], self._offset[place + 1]

    def _read(self, client: int) -> Batch:
        first, last = self._range(client)
        where = f"{self.name}: client {client}"
        with reading(where):
            x, y = self._x[first:last], self._y[first:last]
        require_finite(x, y, where)
        return tensors(x, y, self._normalisation)

    def _keep(self, client: int, batch: Batch) -> None:
        """Puts a client into the cache, and out of it those that waited longest."""
        size = _bytes(batch)
        if size > self._cache_bytes:
            return
        while self._cached_bytes + size > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= _bytes(oldest)
        self._cache[client] = batch
        self._cached_bytes += size


def shard_from_arrays(
    arrays: ShardArrays, normalisation: Normalisation, cache_mib: int, name: str = "memory"
) -> Shard:
    """A shard whose raw rows are in memory, as a scatter sent them."""
    return Shard(
        name,
        arrays.x,
        arrays.y,
        arrays.client_id,
        arrays.client_offset,
        normalisation,
        cache_mib,
    )


def open_shard(
    folder: str | Path,
    index: Index,
    k: int,
    cache_mib: int,
    verify: bool = True,
    between: Callable[[], None] = nothing,
) -> Shard:
    """Opens shard `k` of a prepared dataset and checks that it is what the index says.

    Args:
        folder: the dataset's folder.
        index: its index.
        k: the shard, counted from 0; it belongs to worker k + 1.
        cache_mib: memory for the clients that were loaded last, in MiB.
        verify: whether to compare the file's SHA-256 with the index.
        between: called now and then meanwhile, see `sha256`.

    Raises:
        DataError: the file is missing, damaged, or belongs to another dataset.
    """
    info = index.shards[k]
    path = Path(folder) / info.file
    file = open_member(path, SHARD_FORMAT, index, info.sha256, verify, between)
    try:
        with reading(path):
            for what, expected in (("shard", k + 1), ("shards", len(index.shards))):
                found = attribute(file, what)
                if found != expected:
                    raise DataError(f"{path}: expected {what} = {expected}, found {found!r}")
            x, y = row_datasets(file, index, info.rows)
            client_id, client_offset = _read_clients(file, info.clients, info.rows)
    except DataError:
        file.close()
        raise
    return Shard(str(path), x, y, client_id, client_offset, index.normalisation, cache_mib, file)


def open_member(
    path: Path,
    kind: str,
    index: Index,
    expected: str,
    verify: bool,
    between: Callable[[], None] = nothing,
) -> h5py.File:
    """Opens a file of a dataset, and with `verify` none but the one that the index lists.

    The bytes are compared before HDF5 sees them: a single flipped bit was seen to send it
    into an endless loop.
    """
    if verify and (digest := sha256(path, between)) != expected:
        raise DataError(
            f"{path} is damaged, or from another preparation: expected SHA-256 {expected[:12]!r}, "
            f"found {digest[:12]!r}; copy or prepare it again"
        )
    file = open_checked(path, kind)
    try:
        with reading(path):
            found = attribute(file, "dataset")
        if found != index.dataset:
            raise DataError(
                f"{path} belongs to another dataset: expected {index.dataset[:12]!r}, "
                f"found {str(found)[:12]!r}"
            )
    except DataError:
        file.close()
        raise
    return file


def row_datasets(file: h5py.File, index: Index, rows: int) -> tuple[h5py.Dataset, h5py.Dataset]:
    """The datasets x and y, if their shapes, types and labels are those of the index."""
    x, y = plain_dataset(file, "x"), plain_dataset(file, "y")
    y_dtype = "int64" if index.classes else "float32"
    for dataset, shape, dtype in (
        (x, (rows, *index.row_shape), index.dtype),
        (y, (rows,), y_dtype),
    ):
        if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            raise DataError(
                f"{file.filename}: {dataset.name}: expected {dtype} {list(shape)}, "
                f"found {dataset.dtype} {list(dataset.shape)}"
            )
    for start in range(0, rows if index.classes else 0, _Y_BLOCK):
        labels = y[start : start + _Y_BLOCK]
        wrong = (labels < 0) | (labels >= index.classes)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{file.filename}: /y[{start + row}] is {labels[row]}: expected a label from 0 "
                f"to {index.classes - 1}"
            )
    return x, y


def _read_clients(
    file: h5py.File, clients: int, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clients and where their rows begin, if these add up."""
    client_id = _integers(file, "client/id", clients, f"{clients} different clients")
    if len(np.unique(client_id)) != clients:
        raise DataError(
            f"{file.filename}: /client/id: expected {clients} different clients, found some twice"
        )
    expected = f"{clients + 1} numbers from 0 to {rows}"
    offset = _integers(file, "client/offset", clients + 1, expected)
    if offset[0] != 0 or offset[-1] != rows:
        raise DataError(
            f"{file.filename}: /client/offset: expected {expected}, "
            f"found them from {offset[0]} to {offset[-1]}"
        )
    empty = offset[1:] <= offset[:-1]
    if empty.any():
        client = client_id[int(np.argmax(empty))]
        raise DataError(f"{file.filename}: /client/offset: client {client} has no rows")
    return client_id, offset


def _integers(file: h5py.File, name: str, count: int, expected: str) -> NDArray[np.int64]:
    """A vector of the file, read only if it is as long as it has to be."""
    dataset = plain_dataset(file, name)
    if dataset.shape != (count,) or dataset.dtype != np.int64:
        raise DataError(
            f"{file.filename}: /{name}: expected {expected}, int64 [{count}], "
            f"found {dataset.dtype} {list(dataset.shape or ())}"
        )
    numbers: NDArray[np.int64] = dataset[()]
    return numbers


def require_finite(x: NDArray[Any], y: NDArray[Any], where: str) -> None:
    """Refuses rows with NaN or infinity. Raises `DataError`, which begins with `where`."""
    for name, values in (("x", x), ("y", y)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(f"{where} has NaN or infinity in {name}: expected finite numbers")


def tensors(x: NDArray[Any], y: NDArray[Any], normalisation: Normalisation) -> Batch:
    """Raw rows and labels as they are trained on."""
    return torch.from_numpy(normalisation.x(x)), torch.from_numpy(normalisation.y(y))


def _bytes(batch: Batch) -> int:
    return sum(tensor.nbytes for tensor in batch)
