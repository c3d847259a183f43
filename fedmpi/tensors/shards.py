"""The workers' own shards of a prepared dataset, as pointers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedmpi.data.index import check_workers, read_index
from fedmpi.errors import RemoteError
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.workers.load_shard import PARTS, LoadShard, ShardLoaded

if TYPE_CHECKING:
    from fedmpi.tensors.remote_worker import RemoteWorker


class ShardPointers(NamedTuple):
    """A worker's own shard, on that worker.

    Attributes:
        x: rows, normalised, float32 [n, *row_shape].
        y: labels, int64 [n]; for a regression targets, float32 [n].
        client: ids of its clients, ascending, int64 [c].
        offset: client i has the rows offset[i] to offset[i + 1], int64 [c + 1].
    """

    x: PointerTensor
    y: PointerTensor
    client: PointerTensor
    offset: PointerTensor


def load_shards(
    workers: Sequence[RemoteWorker],
    folder: str | Path,
    *,
    private: bool = False,
    verify: bool = True,
) -> list[ShardPointers]:
    """Has workers load their own shards, all at the same time; see `RemoteWorker.load_shard`."""
    if not workers:
        return []
    crew = workers[0].link.crew
    check_workers(read_index(folder), folder, len(crew.ranks), launched=not crew.in_process)
    remotes = []
    for worker in workers:
        remotes.append([worker.link.make() for _ in PARTS])
        keys = [remote.key for remote in remotes[-1]]
        worker.link.tell(LoadShard(str(folder), keys, private, verify))
    loaded, failure = [], None
    for worker in workers:
        try:
            loaded.append(worker.link.hear(ShardLoaded)[0])
        except RemoteError as error:
            # The others' replies are taken in before anything is raised.
            failure = failure or error
    if failure is not None:
        raise failure
    return [
        ShardPointers(*(worker.point_at(one) for one in reply.objects))
        for worker, reply in zip(workers, loaded, strict=True)
    ]
