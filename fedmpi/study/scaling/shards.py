"""The data of each point of a study."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import h5py

from fedmpi.config import DataConfig, Recipe
from fedmpi.data.files import reason, sha256
from fedmpi.data.index import Index, save_index
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
    """Makes a dataset of the first shards of another one.

    Args:
        index: of the other dataset.
        source: its folder.
        count: how many of its shards.
        target: a new folder.

    Raises:
        DataError: the folder cannot be made.
    """
    try:
        target.mkdir(parents=True)
        shutil.copyfile(source / index.test.file, target / index.test.file)
        shards = []
        for info in index.shards[:count]:
            path = target / info.file
            shutil.copyfile(source / info.file, path)
            with h5py.File(path, "r+") as file:
                file.attrs["shards"] = count  # a shard tells of how many it is one
            shards.append(replace(info, sha256=sha256(path)))
    except OSError as error:
        raise DataError(f"cannot make {target}: {reason(error)}") from None
    recipe = replace(index.recipe, clients=sum(shard.clients for shard in shards))
    kept = replace(index, shards=tuple(shards), recipe=recipe)
    save_index(kept, target)
    return kept
