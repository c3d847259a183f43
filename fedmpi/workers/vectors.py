"""Commands on long vectors: take part in a broadcast or in a sum."""

from __future__ import annotations

from typing import Literal

import torch

from fedmpi.comm.collective import broadcast, reduce_sum
from fedmpi.comm.frame import DTYPES
from fedmpi.workers.command import Command, handles
from fedmpi.workers.worker import Worker


class Route(Command, frozen=True):
    """How a vector travels: the ranks (the owner first), the tree, the size of the pieces."""

    group: list[int]
    topology: Literal["tree", "star"]
    chunk_bytes: int


class Broadcast(Command, frozen=True):
    """Take the owner's vectors into the stored ones of that id, and pass them on."""

    key: str
    route: Route
    dtypes: list[str]
    lengths: list[int]


class ReduceSum(Command, frozen=True):
    """Add the stored int64 vector of that id into the owner's sum, with the children's."""

    key: str
    route: Route
    length: int


# Both run after an earlier failure too: the other ranks of the tree wait for this one.


@handles(Broadcast, always=True)
def take_broadcast(worker: Worker, command: Broadcast, tensors: list[torch.Tensor]) -> None:
    """Stores a list of vectors under `key`, in the memory of the ones already there if they fit."""
    shapes = list(zip(command.dtypes, command.lengths, strict=True))
    vectors = worker.store.get(command.key, [])
    if [(str(v.dtype).removeprefix("torch."), v.numel()) for v in vectors] != shapes:
        vectors = [torch.empty(length, dtype=DTYPES[name]) for name, length in shapes]
        worker.store[command.key] = vectors
    route = command.route
    broadcast(worker.transport, route.group, vectors, route.topology, route.chunk_bytes)


@handles(ReduceSum, always=True)
def give_sum(worker: Worker, command: ReduceSum, tensors: list[torch.Tensor]) -> None:
    """Sends the stored vector, or zeros when a failure left none, and frees the id."""
    vector = worker.store.pop(command.key, None)
    if not isinstance(vector, torch.Tensor) or vector.numel() != command.length:
        vector = torch.zeros(command.length, dtype=torch.int64)
    route = command.route
    reduce_sum(worker.transport, route.group, vector, route.topology, route.chunk_bytes)
