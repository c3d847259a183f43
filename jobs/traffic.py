"""How much each rank has sent: a command of the benchmarks, known to all ranks that import this."""

from __future__ import annotations

import torch

from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker


class CountTraffic(Command, frozen=True):
    """Say how much you have sent since the start."""


class Sent(Reply, frozen=True):
    """Payload bytes, and messages."""

    nbytes: int
    messages: int


@handles(CountTraffic, replies=True)
def count_traffic(worker: Worker, command: CountTraffic, tensors: list[torch.Tensor]) -> Sent:
    """This answer is not in it."""
    return Sent(worker.transport.bytes_sent, worker.transport.messages_sent)


def traffic(crew: Crew) -> list[Sent]:
    """Of every rank, the owner first, whose question to the others is in it."""
    others = crew.ask(lambda rank: CountTraffic(), Sent)
    owner = crew.endpoint.transport
    return [Sent(owner.bytes_sent, owner.messages_sent), *others]
