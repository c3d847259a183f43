"""Commands on long vectors: take part in a broadcast or in a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmpi.comm.collective import Topology, begin_sum, broadcast
from fedmpi.comm.frame import DTYPES
from fedmpi.config.launch import CommConfig
from fedmpi.workers.command import Command, handles
from fedmpi.workers.worker import Worker


class Route(Command, frozen=True):
    """How a vector travels: the ranks (the owner first), the tree, the size of the pieces."""

    group: list[int]
    topology: Topology
    chunk_bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.topology, list) and len(self.topology) != len(self.group):
            raise ValueError(f"{len(self.topology)} nodes for {len(self.group)} ranks")

    def among(self, ranks: Sequence[int]) -> Route:
        """The same way for the owner and some of its workers."""
        group = [self.group[0], *ranks]
        if not isinstance(self.topology, list):
            return Route(group, self.topology, self.chunk_bytes)
        node = dict(zip(self.group, self.topology, strict=True))
        return Route(group, [node[rank] for rank in group], self.chunk_bytes)


def route_over(group: list[int], comm: CommConfig, nodes: Sequence[int]) -> Route:
    """The way over a group, the owner first, that a configuration asks for.

    Args:
        group: ranks.
        comm: says which tree, and from how many workers on it is one of nodes.
        nodes: as `Transport.nodes`.
    """
    by_node = comm.topology == "tree" and len(group) - 1 > comm.hierarchy_above
    topology: Topology = [nodes[rank] for rank in group] if by_node else comm.topology
    return Route(group, topology, comm.chunk_kib * 1024)


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
    """Sends the stored vector, or zeros when a failure left none, and frees the id.

    Does not wait for the vector to be taken: to be woken for that would cost a turn of the core.
    """
    vector = worker.store.pop(command.key, None)
    if not isinstance(vector, torch.Tensor) or vector.numel() != command.length:
        vector = torch.zeros(command.length, dtype=torch.int64)
    route = command.route
    sending = begin_sum(worker.transport, route.group, vector, route.topology, route.chunk_bytes)
    worker.endpoint.let_leave(sending)
