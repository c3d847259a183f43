"""The folder of a dataset: what a preparation may replace in it, and what is not its own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fedmpi.data.files import is_abandoned, reading, reason
from fedmpi.data.hdf5 import attribute, open_file
from fedmpi.data.index import FORMAT, INDEX_FILE, read_index
from fedmpi.data.shard import SHARD_FORMAT, TEST_FORMAT
from fedmpi.errors import DataError, UsageError

TEST_FILE = "test.h5"

_TEMPORARY = re.compile(r"\.(index\.json|test\.h5|shard-\d+\.h5)\.tmp-")


def shard_file(k: int) -> str:
    """Name of shard `k`, which belongs to worker k + 1."""
    return f"shard-{k + 1:04d}.h5"


def make_room(folder: str | Path, shards: int, source: str = "", overwrite: bool = False) -> None:
    """Makes the folder of a dataset, without the dataset and the remains that are in it.

    Only files of FedMPI are removed: those that an index lists, and those that say so of
    themselves. The index goes first, so that nobody takes a half-replaced dataset for a
    whole one.

    Args:
        folder: of the dataset.
        shards: their number.
        source: what the rows come from; if it is a file, it is never removed.
        overwrite: whether the dataset, or finished shards of a killed preparation, may go.

    Raises:
        UsageError: the folder holds a dataset and `overwrite` is false, or files that are
            not FedMPI's under names that are needed; nothing has been touched.
        DataError: the system refused.
    """
    folder = Path(folder)
    try:
        own = _own_files(folder)
        needed = [folder / name for name in (INDEX_FILE, *_members(shards))]
        taken = [path for path in needed if os.path.lexists(path)]
        for path in {*own, *taken}:
            _refuse_source(path, source)
        for path in taken:
            _refuse_taken(path, path in own, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        for path in own if overwrite else []:
            path.unlink(missing_ok=True)
        for path in folder.glob(".*.tmp-*"):
            if _TEMPORARY.match(path.name) and (overwrite or is_abandoned(path)):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {reason(error)}") from error


def remove_unfinished(folder: str | Path, shards: int) -> None:
    """Removes what a failed preparation wrote after `make_room`, as far as the system allows."""
    for name in (INDEX_FILE, *_members(shards)):
        with contextlib.suppress(OSError):
            (Path(folder) / name).unlink(missing_ok=True)


def _members(shards: int) -> Iterator[str]:
    yield from map(shard_file, range(shards))
    yield TEST_FILE


def _own_files(folder: Path) -> list[Path]:
    """The files of FedMPI among those with the names of a dataset's, the index first."""
    listed: set[str] = set()
    with contextlib.suppress(DataError):
        index = read_index(folder)
        listed = {INDEX_FILE, index.test.file, *(shard.file for shard in index.shards)}
    named = [folder / INDEX_FILE, *sorted(folder.glob("shard-*.h5")), folder / TEST_FILE]
    return [p for p in named if p.is_file() and (p.name in listed or _says_so(p))]


def _says_so(path: Path) -> bool:
    """Whether a file that no index lists has a format of FedMPI."""
    if path.name == INDEX_FILE:
        return FORMAT.encode() in path.read_bytes()  # damaged, or of a newer version
    with contextlib.suppress(DataError), reading(path), open_file(path) as file:
        return attribute(file, "format") in (SHARD_FORMAT, TEST_FORMAT)
    return False


def _refuse_source(path: Path, source: str) -> None:
    if path.is_file() and Path(source).is_file() and path.samefile(source):
        raise UsageError(
            f"source = {source!r} has the name of a file of the dataset: choose another folder "
            "with --out"
        )


def _refuse_taken(path: Path, own: bool, overwrite: bool) -> None:
    if not own:
        raise UsageError(
            f"{path} is not a file of FedMPI but a dataset needs its name: choose another folder "
            "with --out, or move it away"
        )
    if not overwrite:
        what = (
            f"{path.parent} holds a prepared dataset"
            if path.name == INDEX_FILE
            else f"{path} is left from a preparation that did not finish"
        )
        raise UsageError(
            f"{what}: choose another folder with --out, or replace it with --overwrite"
        )
