"""A worker's own shard among its tensors: opened where it lies, found by its tags."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import prod
from pathlib import Path

import torch

from fedmpi.data.index import Index, check_workers, read_index
from fedmpi.data.shard import Shard, open_shard
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.operate import Described, describe
from fedmpi.workers.worker import Worker

PARTS = ("x", "y", "client", "offset")
"""The tensors of a shard, in the order of their ids; each has its name as a tag."""


class LoadShard(Command, frozen=True):
    """Open the own shard of a prepared dataset and store its tensors."""

    folder: str
    keys: list[int]
    private: bool
    verify: bool


class ShardLoaded(Reply, frozen=True):
    """The stored objects, in the order of `PARTS`."""

    objects: list[Described]


@handles(LoadShard, replies=True)
def load_shard(worker: Worker, command: LoadShard, tensors: list[torch.Tensor]) -> ShardLoaded:
    """Rows are normalised on the way, as training sees them; the file is closed again."""
    folder, objects = Path(command.folder), worker.objects
    index = read_index(folder)
    check_workers(index, folder, worker.endpoint.size - 1, launched=not worker.transport.in_process)
    objects.make_room(_nbytes(index, worker.rank - 1))
    # Every client is read once: a cache would only hold the rows twice.
    between = worker.heartbeat.between
    shard = open_shard(folder, index, worker.rank - 1, 0, command.verify, between)
    try:
        parts = _read(shard, index, between)
    finally:
        shard.close()
    source = Path(index.source).stem
    for key, name, part in zip(command.keys, PARTS, parts, strict=True):
        tags = [f"#{source}", "#train", f"#{name}"]
        objects.put(key, part, tags, _description(name, source, index), private=command.private)
    return ShardLoaded([describe(objects, key) for key in command.keys])


def _read(shard: Shard, index: Index, between: Callable[[], None]) -> tuple[torch.Tensor, ...]:
    """Rows, labels, clients and where their rows begin."""
    offsets = list(accumulate((shard.rows(client) for client in shard.ids), initial=0))
    x = torch.empty(offsets[-1], *index.row_shape)
    y = torch.empty(offsets[-1], dtype=torch.int64 if index.classes else torch.float32)
    for client, start, end in zip(shard.ids, offsets, offsets[1:], strict=False):
        x[start:end], y[start:end] = shard.load(client)
        between()
    return x, y, torch.tensor(shard.ids), torch.tensor(offsets)


def _nbytes(index: Index, k: int) -> int:
    """Memory of the tensors of shard `k`."""
    info = index.shards[k]
    label = (torch.int64 if index.classes else torch.float32).itemsize
    row = prod(index.row_shape) * torch.float32.itemsize + label
    return info.rows * row + (2 * info.clients + 1) * torch.int64.itemsize


def _description(name: str, source: str, index: Index) -> str:
    return {
        "x": f"rows of {source} to train on, normalised",
        "y": f"labels 0 to {index.classes - 1}, one a row"
        if index.classes
        else "targets, one a row",
        "client": "ids of the clients on this worker, ascending",
        "offset": "the i-th client has the rows offset[i] to offset[i + 1]",
    }[name]
