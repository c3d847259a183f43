"""The data of each point of a study."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from fedmpi.config import DataConfig, Recipe
from fedmpi.data.files import reason
from fedmpi.data.index import Index, read_index, save_index
from fedmpi.errors import DataError
from fedmpi.study.scaling.study import Study, StudyFolder
from fedmpi.workers.shards import prepare


def prepare_points(study: Study, data: DataConfig, folder: StudyFolder) -> None:
    """Makes the shards of every point.

    Strong scaling spreads the same clients over more workers. Weak scaling adds workers, each with
    clients of its own: a point of w workers has the first w shards of the largest point, so that a
    worker's load is the same at all points, to the row.

    Raises:
        UsageError, DataError: see `prepare`; a folder that is there already is refused.
    """
    recipe = Recipe(**{name: getattr(data, name) for name in Recipe.__dataclass_fields__})
    *smaller, most = study.workers
    whole = prepare(recipe, most, folder.shards(most))
    for workers in smaller:
        if study.kind == "strong":
            prepare(recipe, workers, folder.shards(workers))
        else:
            first_shards(whole, folder.shards(most), workers, folder.shards(workers))


def first_shards(index: Index, source: Path, count: int, target: Path) -> Index:
    """Makes a dataset of the first shards of another one, by hard links.

    Args:
        index: of the other dataset.
        source: its folder.
        count: how many of its shards.
        target: a new folder on the same file system.

    Raises:
        DataError: the folder cannot be made.
    """
    kept = replace(
        index,
        dataset=hashlib.sha256(f"{index.dataset} {count} of {len(index.shards)}".encode())
        .hexdigest(),
        shards=index.shards[:count],
    )  # fmt: skip
    kept = replace(kept, recipe=replace(index.recipe, clients=kept.clients))
    try:
        target.mkdir(parents=True)
        for file in (*(shard.file for shard in kept.shards), kept.test.file):
            os.link(source / file, target / file)
    except OSError as error:
        raise DataError(f"cannot make {target}: {reason(error)}") from None
    save_index(kept, target)
    return read_index(target)
