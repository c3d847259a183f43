"""Programs on every transport: what a person writes, run by the owner of a world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.session import session
from fedmpi.workers.crew import Crew
from tests.comm.worlds import World


def lead(world: World, program: Callable[[tuple[RemoteWorker, ...]], None]) -> None:
    """Runs a program on rank 0, with all other ranks as its workers."""

    def scenario(crew: Crew) -> None:
        with session(crew) as workers:
            program(workers)

    world.lead(scenario)


@contextmanager
def counted_messages(worker: RemoteWorker) -> Iterator[list[int]]:
    """The number of frames and buffers that the owner sends inside, once the block has ended."""
    transport = worker.link.crew.endpoint.transport
    worker.wait()
    before, found = transport.messages_sent, [0]
    yield found
    worker.wait()
    found[0] = transport.messages_sent - before


def bits(tensor: torch.Tensor) -> Any:
    """What two tensors of the same bits have in common."""
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()
