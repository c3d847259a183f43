"""Broadcast and sum of long vectors over point-to-point messages.

The ranks of a group stand in a binomial tree (or a star, or a tree of nodes) whose root is the
group's first rank. A vector travels in chunks, so that a rank passes on the first chunk while
the next is still arriving: the levels of the tree overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import as_bytes
from fedmpi.comm.transport import Pending, Transport

Topology = Literal["tree", "star"] | list[int]
"""How the ranks of a group are joined; a list is a tree of nodes: the node of each of them."""

PIECES = 8
"""Of a broadcast vector: the levels of a tree overlap to 7/8."""

_EMPTY = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its group: ranks of its parent (None: it is the root) and children."""

    parent: int | None
    children: tuple[int, ...]


def place(rank: int, group: Sequence[int], topology: Topology) -> Place:
    """The place of a rank in the tree over `group`.

    In a tree of nodes the first rank of each node in the group leads it: the leaders form one
    binomial tree, and below each of them its node forms another, so that a vector enters or
    leaves a node once. (Karonis et al. 2000, "Exploiting hierarchy in parallel computer networks
    to optimize collective operation performance", with two levels.)
    """
    if topology == "tree":
        return _binomial(rank, group)
    if topology == "star":
        root, *others = group
        return Place(None, tuple(others)) if rank == root else Place(root, ())
    nodes: dict[int, list[int]] = {}
    for member, node in zip(group, topology, strict=True):
        nodes.setdefault(node, []).append(member)
    own = _binomial(rank, next(members for members in nodes.values() if rank in members))
    if own.parent is not None:
        return own
    among = _binomial(rank, [leader for leader, *_ in nodes.values()])
    # Other nodes first: the network is slower than memory.
    return Place(among.parent, among.children + own.children)


def _binomial(rank: int, group: Sequence[int]) -> Place:
    """The place in a binomial tree.

    The parent of position i is i without its lowest set bit; the child with the largest
    subtree comes first, since its subtree needs the longest.
    """
    i, n = list(group).index(rank), len(group)
    lowest = i & -i if i else 1 << n.bit_length()
    steps = [1 << k for k in range(n.bit_length()) if 1 << k < lowest and i + (1 << k) < n]
    return Place(
        None if i == 0 else group[i & (i - 1)], tuple(group[i + s] for s in reversed(steps))
    )


def _piece_bytes(nbytes: int, members: int, topology: Topology, chunk_bytes: int) -> int:
    """Bytes of the pieces in which a vector goes out: the same on every rank of the group.

    Pieces are for ranks that pass them on. A star has none, and neither has a tree of three or
    fewer. Elsewhere a vector has PIECES of them at most: each costs a message, and where ranks
    share cores a change of turns.
    """
    if topology == "star" or members <= 3:
        return max(nbytes, 1)
    return max(chunk_bytes, -(-nbytes // PIECES))


def add_integers(total: torch.Tensor, other: torch.Tensor) -> None:
    """total += other for int64 of the same shape; what leaves 64 bits wraps round."""
    if total.is_cuda:
        total.add_(other)
    else:
        # PyTorch multiplies every int64 by alpha = 1 first, which takes four times as long.
        np.add(total.numpy(), other.numpy(), out=total.numpy())


def broadcast(
    transport: Transport,
    group: Sequence[int],
    tensors: Sequence[torch.Tensor],
    topology: Topology,
    chunk_bytes: int,
) -> None:
    """Copies the root's vectors into the vectors of every other rank of the group.

    Every rank of the group calls it with the same group, topology and chunk size and
    with contiguous 1-D tensors of the same dtypes and lengths. On return the vectors may
    be changed.
    """
    here = place(transport.rank, group, topology)
    pieces: list[torch.Tensor] = []
    for memory in map(as_bytes, tensors):
        step = _piece_bytes(memory.numel(), len(group), topology, chunk_bytes)
        if memory.numel():
            pieces += [memory] if memory.numel() <= step else memory.split(step)
    arriving = (
        []
        if here.parent is None
        else [transport.receive_buffer(p, here.parent, Channel.COLLECTIVE) for p in pieces]
    )
    leaving: list[Pending] = []
    for index, piece in enumerate(pieces):
        if arriving:
            transport.finish(arriving[index])
        leaving += [
            transport.send_buffer(piece, child, Channel.COLLECTIVE) for child in here.children
        ]
    for transfer in leaving:
        transport.finish(transfer)


def reduce_sum(
    transport: Transport,
    group: Sequence[int],
    vector: torch.Tensor,
    topology: Topology,
    chunk_bytes: int,
    expected: float = 0.0,
) -> None:
    """Adds the integer vectors of the whole group into the root's; the others' are used up.

    Arguments as for `begin_sum`. On return the vectors may be changed.
    """
    arguments = transport, group, vector, topology, chunk_bytes, expected
    for transfer in begin_sum(*arguments):
        transport.finish(transfer)


def begin_sum(
    transport: Transport,
    group: Sequence[int],
    vector: torch.Tensor,
    topology: Topology,
    chunk_bytes: int,
    expected: float = 0.0,
) -> list[Pending]:
    """This rank's part of a sum, up to the waiting for who takes it.

    Args:
        transport: this rank's; every rank of the group calls with the same arguments.
        group: ranks, the root first.
        vector: contiguous 1-D int64 of the same length everywhere. Integer addition is
            exact and wraps in any order alike, so the sum does not depend on the tree.
        topology: how they are joined.
        chunk_bytes: size of the pieces.
        expected: seconds until the first child will probably have its vector.

    Returns:
        What is on its way to the parent: until all of it has ended the vector must not change.
    """
    here = place(transport.rank, group, topology)
    if not vector.numel():
        return []
    pieces = vector.split(max(1, chunk_bytes // vector.element_size()))
    # An empty message goes ahead: the long wait for it may be a lazy one, while the pieces
    # need a rank that looks after them.
    ready = {c: transport.receive_buffer(_EMPTY, c, Channel.COLLECTIVE) for c in here.children}
    # Two scratch chunks per child: one is added while the next arrives.
    arriving: dict[int, deque[tuple[torch.Tensor, Pending]]] = {c: deque() for c in here.children}
    scratch = {c: vector.new_empty(2, pieces[0].numel()) for c in here.children}

    def expect(child: int, index: int) -> None:
        if index < len(pieces):
            target = scratch[child][index % 2][: pieces[index].numel()]
            pending = transport.receive_buffer(as_bytes(target), child, Channel.COLLECTIVE)
            arriving[child].append((target, pending))

    leaving: list[Pending] = []
    for index, piece in enumerate(pieces):
        for child in here.children:
            if index == 0:
                transport.finish(ready[child], expected)
                expected = 0.0
                expect(child, 0)
                expect(child, 1)
            target, pending = arriving[child].popleft()
            transport.finish(pending)
            add_integers(piece, target)
            expect(child, index + 2)
        if here.parent is not None:
            ahead = [_EMPTY] if index == 0 else []
            leaving += [
                transport.send_buffer(part, here.parent, Channel.COLLECTIVE)
                for part in (*ahead, as_bytes(piece))
            ]
    return leaving
