"""index.json: what a folder of shards holds. A folder without one is not a dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

import fedmpi
from fedmpi.config import Recipe
from fedmpi.data.files import atomic, reason
from fedmpi.data.normalise import Normalisation
from fedmpi.data.source import Task
from fedmpi.decoding import from_json
from fedmpi.errors import DataError, UsageError

FORMAT = "fedmpi-index"
VERSION = 1
INDEX_FILE = "index.json"

LARGEST_ROW = 2**31
"""Most values of a row: a damaged shape must not make a model of any size."""
MOST_DIMENSIONS = 31
"""Of a row, since HDF5 has 32 for the rows together."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard of the index.

    Attributes:
        file: its name in the folder.
        rows: number of its rows.
        clients: number of its clients.
        sha256: of the file, 64 hex digits.
        label_counts: rows of each class; empty for a regression.
    """

    file: str
    rows: int
    clients: int
    sha256: str
    label_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class TestInfo:
    """The file of the held-out rows: its name, its number of rows and its SHA-256."""

    __test__ = False  # not a test, whatever pytest makes of the name

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A prepared dataset.

    Attributes:
        dataset: 64 hex digits that name the recipe's result, however many shards it has.
        source: name of the source.
        task: classification or regression.
        row_shape: shape of a row.
        dtype: type of the rows as stored, uint8 or float32.
        classes: number of classes, 0 for regression.
        recipe: how it was made.
        normalisation: to be applied to the rows when they are loaded.
        shards: one for each worker, in their order.
        test: the held-out rows.
        format: FORMAT.
        version: of the format.
        created_by: the FedMPI that wrote it.
    """

    dataset: str
    source: str
    task: Task
    row_shape: tuple[int, ...]
    dtype: str
    classes: int
    recipe: Recipe
    normalisation: Normalisation
    shards: tuple[ShardInfo, ...]
    test: TestInfo
    format: str = FORMAT
    version: int = VERSION
    created_by: str = f"FedMPI {fedmpi.__version__}"

    @property
    def clients(self) -> int:
        """Number of clients, over all shards."""
        return sum(shard.clients for shard in self.shards)

    @property
    def rows(self) -> int:
        """Number of training rows, over all shards."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class _Header:
    """What an index of any version begins with."""

    format: str = ""
    version: int = 0
    created_by: str = "an unknown program"


def read_index(folder: str | Path) -> Index:
    """Reads the index of a folder of shards.

    Raises:
        DataError: there is none, or it is damaged, of another format or a newer version.
    """
    path = Path(folder) / INDEX_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {INDEX_FILE}, so it is no prepared dataset: make one with "
            "`python -m fedmpi prepare`"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    try:
        header = from_json(text, _Header)
        if header.format != FORMAT:
            raise DataError(f"{path}: expected the format {FORMAT!r}, found {header.format!r}")
        if not 1 <= header.version <= VERSION:
            raise DataError(
                f"{path}: expected version {VERSION} or older, found version {header.version}; "
                f"read it with the FedMPI that wrote it ({header.created_by!r:.80})"
            )
        index = from_json(text, Index)
    except DataError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UsageError) as error:
        raise DataError(f"{path} is damaged: {reason(error)}") from error
    _check(index, path)
    return index


def _check(index: Index, path: Path) -> None:
    """Refuses an index whose parts contradict each other, or whose files lie elsewhere."""
    shape = index.row_shape
    if (
        index.dtype not in ("uint8", "float32")
        or min(shape, default=0) < 1
        or len(shape) > MOST_DIMENSIONS
        or math.prod(shape) > LARGEST_ROW
    ):
        raise DataError(
            f"{path} is damaged: rows {index.dtype!r:.20} {list(shape[:MOST_DIMENSIONS])}: "
            f"expected uint8 or float32 and positive sizes, at most {LARGEST_ROW:,} values"
        )
    # No class is without a row, among those to train on or those held out.
    rows = index.rows + index.test.rows
    if (index.classes > 0) != (index.task == "classification") or index.classes > rows:
        raise DataError(
            f"{path} is damaged: {index.task} with {index.classes} classes in {rows} rows"
        )
    if not index.normalisation.fits(index.row_shape):
        raise DataError(
            f"{path} is damaged: its normalisation has {len(index.normalisation.mean)} means and "
            f"{len(index.normalisation.std)} deviations, or a deviation of 0, for rows "
            f"{list(index.row_shape)}"
        )
    if not index.source.isprintable():
        raise DataError(f"{path} is damaged: it names the source {index.source!r:.80}")
    if not index.shards:
        raise DataError(f"{path} is damaged: it lists no shards")
    members: list[ShardInfo | TestInfo] = [*index.shards, index.test]
    for info in members:
        if info.file != Path(info.file).name or not info.file.isprintable():
            raise DataError(f"{path} is damaged: {info.file!r} is not a file's name in its folder")
        if info.rows < 1:
            raise DataError(f"{path} is damaged: {info.file} has {info.rows} rows")
    for shard in index.shards:
        if not 1 <= shard.clients <= shard.rows:
            raise DataError(
                f"{path} is damaged: {shard.file} has {shard.clients} clients with {shard.rows} "
                "rows"
            )


def save_index(index: Index, folder: str | Path) -> None:
    """Writes the index, whole or not at all. Raises `DataError` if the system refuses."""
    with atomic(Path(folder) / INDEX_FILE) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n")


def check_workers(index: Index, folder: str | Path, workers: int, launched: bool) -> None:
    """Refuses a dataset that has not as many shards as the job has workers.

    Args:
        index: of the dataset.
        folder: where it is.
        workers: of the job.
        launched: whether they are ranks of a launch, and not threads of one process.

    Raises:
        UsageError: says what would be right.
    """
    shards = len(index.shards)
    if shards != workers:
        threads = "" if launched else f" or --workers {shards}"
        raise UsageError(
            f"{shards} shard{'s' * (shards != 1)} in {folder} but {workers} "
            f"worker{'s' * (workers != 1)}: run with mpirun -n {shards + 1}{threads}, or prepare "
            f"again with --workers {workers}"
        )
