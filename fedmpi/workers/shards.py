"""Shards written in parallel: each worker writes its own, the owner the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fedmpi.config import Recipe
from fedmpi.data.files import is_abandoned, reason, temporary_name
from fedmpi.data.folder import make_room, remove_unfinished
from fedmpi.data.index import INDEX_FILE, Index, ShardInfo, TestInfo, read_index
from fedmpi.data.plan import Plan, auto_path, plan
from fedmpi.data.prepare import write_index, write_shards, write_test
from fedmpi.data.sources import open_source, source_files
from fedmpi.errors import DataError, FedMPIError
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker


class WriteShards(Command, frozen=True):
    """Make the plan of this recipe and write these shards of it, counted from 0."""

    recipe: Recipe
    shards: int
    folder: str
    which: list[int]


class ShardsWritten(Reply, frozen=True):
    """What the index says of the written shards."""

    shards: list[ShardInfo]


@handles(WriteShards, replies=True)
def write(worker: Worker, command: WriteShards, tensors: list[torch.Tensor]) -> ShardsWritten:
    """One pass over the source, however many shards."""
    made = plan(command.recipe, command.shards)
    return ShardsWritten(
        write_shards(made, command.folder, command.which, worker.heartbeat.between)
    )


def prepare(
    recipe: Recipe,
    shards: int,
    folder: str | Path,
    crew: Crew | None = None,
    overwrite: bool = False,
) -> Index:
    """Prepares a dataset: shards, held-out rows, index.

    Args:
        recipe: how the shards are made.
        shards: their number.
        folder: where they go, on a file system that all ranks share.
        crew: workers that write at the same time; None: this process writes all.
        overwrite: whether a dataset that is there may be replaced.

    Raises:
        UsageError, DataError: here, or as `RemoteError` from a worker.
    """
    made = plan(recipe, shards)  # refuses a recipe that cannot be, before anything is touched
    make_room(folder, shards, made.recipe.source, overwrite)
    try:
        if crew is None:
            infos, test = write_shards(made, folder, range(shards)), write_test(made, folder)
        else:
            infos, test = _write_together(made, folder, crew)
        return write_index(made, folder, infos, test)
    except BaseException:
        # Shards without an index are no dataset, and a full disk needs the room.
        remove_unfinished(folder, shards)
        raise


def _write_together(made: Plan, folder: str | Path, crew: Crew) -> tuple[list[ShardInfo], TestInfo]:
    """The workers write the shards while the owner writes the held-out rows."""
    writers = len(crew.ranks)
    # The owner has downloaded what was to be downloaded when it made the plan.
    source = Recipe(**{**vars(made.recipe), "download": False})
    for rank in crew.ranks:
        which = list(range(rank - 1, made.workers, writers))
        crew.tell(rank, WriteShards(source, made.workers, str(folder), which))
    try:
        test = write_test(made, folder)
    except FedMPIError:
        crew.hear(crew.ranks, ShardsWritten)  # nobody is stopped in the middle of a file
        raise
    replies = crew.hear(crew.ranks, ShardsWritten)
    return sorted((i for reply in replies for i in reply.shards), key=lambda i: i.file), test


def prepare_once(recipe: Recipe, shards: int, crew: Crew | None) -> tuple[Path, Index]:
    """The shards of a recipe under data/auto, made if they are not there yet.

    They appear under their name whole or not at all, so that jobs which start together
    do not meet half of them.
    """
    if recipe.download and not source_files(recipe):
        open_source(recipe)  # the folder's name depends on the files that it downloads
    folder = auto_path(recipe, shards)
    if not (folder / INDEX_FILE).exists():
        for other in folder.parent.glob(".*.tmp-*"):
            if other.name.startswith(f".{folder.name}.tmp-") and is_abandoned(other):
                shutil.rmtree(other, ignore_errors=True)
        temporary = temporary_name(folder)
        try:
            prepare(recipe, shards, temporary, crew, overwrite=True)
            try:
                temporary.rename(folder)
            except OSError as error:
                # Another job was faster: its shards are the same.
                if not (folder / INDEX_FILE).exists():
                    raise DataError(
                        f"cannot make {folder}: {reason(error)}; remove what is there"
                    ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder, read_index(folder)
