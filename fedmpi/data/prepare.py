"""The files of a prepared dataset: its shards, its held-out rows and, last, its index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmpi.data.files import nothing, sha256
from fedmpi.data.folder import TEST_FILE, shard_file
from fedmpi.data.hdf5 import create, put_attribute
from fedmpi.data.index import Index, ShardInfo, TestInfo, save_index
from fedmpi.data.plan import Plan
from fedmpi.data.rows import Array
from fedmpi.data.shard import SHARD_FORMAT, TEST_FORMAT, ShardArrays

OPEN_FILES = 128
"""Shards written in one pass over the source; a process may often open only 1,024 files."""


def write_shards(
    plan: Plan,
    folder: str | Path,
    which: Sequence[int],
    between: Callable[[], None] = nothing,
) -> list[ShardInfo]:
    """Writes the named shards in one pass over the source, or few if there are very many.

    Memory holds one block of rows and the labels, however large the source is.

    Args:
        plan: the preparation.
        folder: the dataset's folder, which exists.
        which: shards counted from 0; shard k goes to `shard-000(k+1).h5`.
        between: called after every block: a worker's sign of life.

    Raises:
        DataError: the source is damaged or a shard cannot be written; the shards of the
            pass that failed are not left behind.
    """
    infos: list[ShardInfo] = []
    for start in range(0, len(which), OPEN_FILES):
        infos += _write_pass(plan, Path(folder), which[start : start + OPEN_FILES], between)
    return infos


def _write_pass(
    plan: Plan, folder: Path, which: Sequence[int], between: Callable[[], None]
) -> list[ShardInfo]:
    counts = {k: np.zeros(plan.source.classes, np.int64) for k in which}
    with ExitStack() as stack:
        files: dict[int, h5py.File] = {}
        for k in which:
            file = stack.enter_context(create(folder / shard_file(k), SHARD_FORMAT))
            file.attrs["shard"] = k + 1
            file.attrs["shards"] = plan.workers
            file["client/id"] = plan.client_ids(k)
            file["client/offset"] = plan.client_offsets(k)
            _create_rows(file, plan, int(plan.client_offsets(k)[-1]))
            files[k] = file
        for k, places, x, y in _deal(plan, which):
            for run in _runs(places):
                first = int(places[run.start])
                files[k]["x"][first : first + len(x[run])] = x[run]
                files[k]["y"][first : first + len(x[run])] = y[run]
            if plan.source.classes:
                counts[k] += np.bincount(y, minlength=plan.source.classes)
            between()
    return [
        ShardInfo(
            file=shard_file(k),
            rows=int(plan.client_offsets(k)[-1]),
            clients=len(plan.client_ids(k)),
            sha256=sha256(folder / shard_file(k), between),
            label_counts=tuple(counts[k].tolist()),
        )
        for k in which
    ]


def write_test(plan: Plan, folder: str | Path) -> TestInfo:
    """Writes the held-out rows to test.h5. Raises `DataError` as `write_shards` does."""
    rows, start = plan.source.test_rows, 0
    path = Path(folder) / TEST_FILE
    with create(path, TEST_FORMAT) as file:
        _create_rows(file, plan, rows)
        for x, y in plan.source.blocks("test"):
            file["x"][start : start + len(x)] = x
            file["y"][start : start + len(x)] = y
            start += len(x)
    return TestInfo(TEST_FILE, rows, sha256(path))


def write_index(
    plan: Plan, folder: str | Path, infos: Sequence[ShardInfo], test_info: TestInfo
) -> Index:
    """Writes index.json, with which the folder becomes a dataset; call it last.

    Args:
        plan: the preparation.
        folder: the dataset's folder.
        infos: of all shards, in the order of the workers.
        test_info: of the held-out rows.

    Raises:
        DataError: the folder cannot be written.
    """
    index = Index(
        dataset=plan.dataset,
        source=plan.source.name,
        task=plan.source.task,
        row_shape=plan.source.row_shape,
        dtype=plan.source.dtype.name,
        classes=plan.source.classes,
        recipe=plan.recipe,
        normalisation=plan.normalisation,
        shards=tuple(infos),
        test=test_info,
    )
    save_index(index, folder)
    return index


def clients_in_memory(plan: Plan, k: int) -> ShardArrays:
    """What shard `k` would hold, as arrays. Raises `DataError` if the source is damaged."""
    offset = plan.client_offsets(k)
    source = plan.source
    x = np.empty((offset[-1], *source.row_shape), source.dtype)
    y = np.empty(offset[-1], source.labels().dtype)
    for _, places, some_x, some_y in _deal(plan, [k]):
        x[places] = some_x
        y[places] = some_y
    return ShardArrays(x, y, plan.client_ids(k), offset)


def _create_rows(file: h5py.File, plan: Plan, rows: int) -> None:
    """Gives a file its empty x and y, and the attributes that tell where they come from."""
    source = plan.source
    put_attribute(file, "dataset", plan.dataset)
    file.attrs["source"] = source.name
    file.attrs["normalisation"] = msgspec.json.encode(plan.normalisation).decode()
    file.create_dataset("x", (rows, *source.row_shape), source.dtype)
    file.create_dataset("y", (rows,), source.labels().dtype)


def _deal(
    plan: Plan, which: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64], Array, Array]]:
    """Goes through the training rows once and deals each block to the named shards.

    Yields:
        A shard, the rows of it that this block fills (ascending), and their x and y.
    """
    homes = {k: plan.places(k) for k in which}
    start = 0
    for x, y in plan.source.blocks("train"):
        stop = start + len(x)
        for k, (rows, places) in homes.items():
            first, last = np.searchsorted(rows, (start, stop))
            if first < last:
                order = first + np.argsort(places[first:last])
                chosen = rows[order] - start
                yield k, places[order], x[chosen], y[chosen]
        start = stop


def _runs(places: NDArray[np.int64]) -> Iterator[slice]:
    """The stretches of ascending numbers that follow each other without a gap.

    A client's rows keep the order of the source, so that each block gives a client one
    stretch, which is one write.
    """
    borders = np.flatnonzero(np.diff(places) != 1) + 1
    for first, last in zip([0, *borders], [*borders, len(places)], strict=True):
        yield slice(int(first), int(last))
