"""A plan: everything about a preparation that is decided before a row is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmpi.config import Recipe
from fedmpi.data.normalise import Normalisation, measure
from fedmpi.data.partition import ClientOfRow, partition, workers_of_clients
from fedmpi.data.source import Source
from fedmpi.data.sources import SOURCES, open_source, source_files

AUTO_FOLDER = Path("data/auto")


@dataclass(frozen=True, eq=False)
class Plan:
    """Which shard gets which rows. The same recipe gives the same plan on every rank.

    Attributes:
        recipe: what was asked for.
        workers: number of shards.
        source: where the rows come from.
        dataset: 64 hex digits that name the result, whatever the number of workers.
        client_of_row: int32 [train_rows].
        worker_of_client: int32 [clients], workers counted from 0.
        normalisation: measured on the training rows.
    """

    recipe: Recipe
    workers: int
    source: Source
    dataset: str
    client_of_row: ClientOfRow
    worker_of_client: NDArray[np.int32]
    normalisation: Normalisation

    @property
    def clients(self) -> int:
        """Number of clients, over all workers."""
        return len(self.worker_of_client)

    @cached_property
    def rows_per_client(self) -> NDArray[np.int64]:
        """int64 [clients]."""
        return np.bincount(self.client_of_row, minlength=self.clients)

    @cached_property
    def _rows_by_shard(self) -> list[NDArray[np.int64]]:
        """For each shard its rows as numbered in the source, by client, then by number."""
        worker_of_row = self.worker_of_client[self.client_of_row]
        order = np.lexsort((self.client_of_row, worker_of_row))
        ends = np.cumsum(np.bincount(worker_of_row, minlength=self.workers))
        return np.split(order, ends[:-1])

    def client_ids(self, k: int) -> NDArray[np.int64]:
        """The clients of shard `k`, ascending."""
        return np.flatnonzero(self.worker_of_client == k)

    def client_offsets(self, k: int) -> NDArray[np.int64]:
        """int64 [c + 1]: client i of the shard has its rows offset[i] to offset[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.rows_per_client[self.client_ids(k)])])

    def places(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source rows of shard `k`, ascending, and the shard row that each becomes."""
        rows = self._rows_by_shard[k]
        places = np.argsort(rows)
        return rows[places], places


def plan(recipe: Recipe, workers: int) -> Plan:
    """Opens the source, splits its rows into clients and these among the workers.

    The clients and their rows depend on the recipe alone; the number of workers decides
    only who holds which client.

    Args:
        recipe: how the shards are made; of a `DataConfig`, its recipe counts.
        workers: number of shards.

    Raises:
        UsageError: the recipe does not fit the source, or more workers than clients.
        DataError: the source is missing or damaged.
    """
    recipe = Recipe(**{f.name: getattr(recipe, f.name) for f in fields(Recipe)})
    source = open_source(recipe)
    client_of_row = partition(recipe, source.labels(), source.classes, source.column)
    return Plan(
        recipe=recipe,
        workers=workers,
        source=source,
        dataset=_dataset_id(recipe, source),
        client_of_row=client_of_row,
        worker_of_client=workers_of_clients(np.bincount(client_of_row), workers),
        normalisation=measure(source, recipe.normalise),
    )


def auto_path(recipe: Recipe, workers: int) -> Path:
    """Where the shards of a recipe go when no folder is named.

    It changes with the recipe and with the path, size and date of the files that the source
    is read from, so that the shards of others are never taken for them.
    """
    name = recipe.source if recipe.source in SOURCES else Path(recipe.source).stem
    digest = hashlib.sha256(_recipe_bytes(recipe))
    for file in source_files(recipe):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    short = digest.hexdigest()[:8]
    clients = "" if recipe.partition == "natural" else f"-{recipe.clients}c"
    return AUTO_FOLDER / f"{name}-{recipe.partition}{clients}-{short}-{workers}w"


def _recipe_bytes(recipe: Recipe) -> bytes:
    """All of a recipe but where its raw files lie."""
    table = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    return msgspec.json.encode({k: v for k, v in table.items() if k not in ("root", "download")})


def _dataset_id(recipe: Recipe, source: Source) -> str:
    digest = hashlib.sha256(_recipe_bytes(recipe))
    digest.update(f"{source.name} {source.train_rows} {source.test_rows}".encode())
    digest.update(source.labels().tobytes())
    digest.update(source.labels("test").tobytes())
    return digest.hexdigest()
