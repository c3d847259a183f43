"""What a worker does for one that has died: it takes the dead one's clients beside its own."""

from __future__ import annotations

import torch

from fedmpi.data.index import read_index
from fedmpi.data.normalise import Normalisation
from fedmpi.data.shard import ShardArrays, open_shard, shard_from_arrays
from fedmpi.federated.commands import TRAINER
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.worker import Worker


class TakeShard(Command, frozen=True):
    """Open this shard of the folder too, counted from 0."""

    folder: str
    shard: int


class TakeRows(Command, frozen=True):
    """Take these clients' rows too: tensors x, y (raw), ids, offsets."""

    normalisation: Normalisation


class Taken(Reply, frozen=True):
    """The clients that were taken over."""

    clients: list[int]


@handles(TakeShard, replies=True)
def take_shard(worker: Worker, command: TakeShard, tensors: list[torch.Tensor]) -> Taken:
    """Fails if the shard is on the disk of a node that this one cannot read."""
    trainer = worker.object(TRAINER, Trainer)
    data = trainer.config.data
    index = read_index(command.folder)
    between = worker.heartbeat.between
    shard = open_shard(command.folder, index, command.shard, data.cache_mib, data.verify, between)
    trainer.take_over(shard)
    return Taken(list(shard.ids))


@handles(TakeRows, replies=True)
def take_rows(worker: Worker, command: TakeRows, tensors: list[torch.Tensor]) -> Taken:
    """Takes them as the owner has sent them at the start to the one that died."""
    trainer = worker.object(TRAINER, Trainer)
    x, y, ids, offsets = (t.numpy() for t in tensors)
    shard = shard_from_arrays(
        ShardArrays(x, y, ids, offsets),
        command.normalisation,
        trainer.config.data.cache_mib,
        name=f"rows scattered again to rank {worker.rank}",
    )
    trainer.take_over(shard)
    return Taken(list(shard.ids))
