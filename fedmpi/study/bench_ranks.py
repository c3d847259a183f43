"""What all ranks of `fedmpi bench comm` do together: the same transfer by FedMPI and by plain MPI.

Every rank runs the same function with the same arguments, workers because a command asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from fedmpi.comm.collective import broadcast, reduce_sum
from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.mpi import MpiTransport
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.worker import OWNER, Worker

What = Literal["exchange", "broadcast", "sum"]
How = Literal["fedmpi", "star", "mpi"]
PARTNER = 1
"""Rank that exchanges messages with the owner."""


class Transfer(Command, frozen=True):
    """Take part in `repeats` transfers of `nbytes`; the first `warm` of them do not count."""

    what: What
    how: How
    nbytes: int
    repeats: int
    warm: int
    chunk_bytes: int


class Took(Reply, frozen=True):
    """Seconds of each transfer that counts, on this rank."""

    seconds: list[float]


class Rest(Command, frozen=True):
    """Say how much of the processor this rank has had since it started."""


class Rested(Reply, frozen=True):
    """CPU seconds of the process."""

    cpu: float


class Ball(Command, frozen=True):
    """What goes to and fro."""


@handles(Transfer, replies=True)
def take_part(worker: Worker, command: Transfer, tensors: list[torch.Tensor]) -> Took:
    """The worker's side."""
    return Took(transfer(worker.endpoint, command))


@handles(Rest, replies=True)
def rest(worker: Worker, command: Rest, tensors: list[torch.Tensor]) -> Rested:
    """What waiting costs shows as the difference of two answers."""
    return Rested(time.process_time())


def transfer(endpoint: Endpoint, asked: Transfer) -> list[float]:
    """Runs the transfers on this rank.

    Returns:
        Seconds of each that counts: of an exchange, to the partner and back, at the owner.

    Raises:
        TypeError: the transport is not MPI.
    """
    transport = endpoint.transport
    if not isinstance(transport, MpiTransport):
        raise TypeError("transfers are compared with MPI's own: the transport has to be MPI")
    comm = transport.communicator
    run = {"exchange": _exchange, "broadcast": _broadcast, "sum": _sum}[asked.what]
    once = run(endpoint, comm, asked)
    seconds = []
    for _ in range(asked.warm + asked.repeats):
        if asked.what != "exchange":
            comm.Barrier()
        begun = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begun)
    endpoint.flush()
    return seconds[asked.warm :]


def _exchange(endpoint: Endpoint, comm: Any, asked: Transfer) -> Callable[[], None]:
    mine, other = (OWNER, PARTNER) if endpoint.rank == OWNER else (PARTNER, OWNER)
    if asked.how == "mpi":
        out = np.ones(asked.nbytes, dtype=np.uint8)

        def raw() -> None:
            # A frame arrives in memory of its own: so does this, or it would do less.
            if mine == OWNER:
                comm.Send(out, other)
                comm.Recv(np.empty(asked.nbytes, dtype=np.uint8), other)
            else:
                comm.Recv(np.empty(asked.nbytes, dtype=np.uint8), other)
                comm.Send(out, other)

        return raw
    tensor = torch.ones(asked.nbytes, dtype=torch.uint8)

    def frames() -> None:
        if mine == OWNER:
            endpoint.send(other, Channel.PEER, Ball(), [tensor])
            endpoint.receive(Channel.PEER, other)
        else:
            endpoint.receive(Channel.PEER, other)
            endpoint.send(other, Channel.PEER, Ball(), [tensor])

    return frames


def _broadcast(endpoint: Endpoint, comm: Any, asked: Transfer) -> Callable[[], None]:
    vector = torch.ones(asked.nbytes, dtype=torch.uint8)
    if asked.how == "mpi":
        memory = vector.numpy()
        return lambda: comm.Bcast(memory, OWNER)
    group, topology = list(range(endpoint.size)), _topology(asked.how)
    return lambda: broadcast(endpoint.transport, group, [vector], topology, asked.chunk_bytes)


def _sum(endpoint: Endpoint, comm: Any, asked: Transfer) -> Callable[[], None]:
    vector = torch.ones(asked.nbytes // 8, dtype=torch.int64)
    if asked.how == "mpi":
        mine, total = vector.numpy(), np.ones(len(vector), dtype=np.int64)
        return lambda: comm.Reduce(mine, total, root=OWNER)
    group, topology = list(range(endpoint.size)), _topology(asked.how)
    return lambda: reduce_sum(endpoint.transport, group, vector, topology, asked.chunk_bytes)


def _topology(how: How) -> Literal["tree", "star"]:
    return "star" if how == "star" else "tree"
