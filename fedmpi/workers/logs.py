"""The logs of all ranks, in the folder of a run."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from fedmpi.comm.rank_log import RANK_LOG
from fedmpi.workers.command import Command, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker


class OpenLog(Command, frozen=True):
    """Write the log of this rank into this folder, if it is there or can be made."""

    folder: str


@handles(OpenLog, always=True)
def open_log(worker: Worker, command: OpenLog, tensors: list[torch.Tensor]) -> None:
    """Threads of the owner's process share its log."""
    if not worker.transport.in_process:
        RANK_LOG.open(command.folder, worker.rank)
        worker.heartbeat.arm(time.monotonic())  # from now on its stacks go there


def open_logs(crew: Crew, folder: Path) -> None:
    """Opens the log of the owner, and has every worker open its own."""
    RANK_LOG.open(folder.resolve(), 0)
    for rank in crew.ranks:
        crew.tell(rank, OpenLog(str(folder.resolve())))
