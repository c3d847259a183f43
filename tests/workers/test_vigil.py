"""The owner's vigil over silent workers, and their heartbeat, on threads of one process."""

from __future__ import annotations

import time

import pytest
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.errors import FedMPIError, SilentRank
from fedmpi.workers import heartbeat, vigil
from fedmpi.workers.command import Command, handles
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.worker import Worker
from tests.workers.crews import Double, Value


class Idle(Command, frozen=True):
    """Be away for some seconds, with a sign of life every so often, or none."""

    seconds: float
    beat: float = 0.0


class Listen(Command, frozen=True):
    """Wait for a frame that nobody sends."""


@handles(Idle)
def idle(worker: Worker, command: Idle, tensors: list[torch.Tensor]) -> None:
    end = time.monotonic() + command.seconds
    while time.monotonic() < end:
        time.sleep(command.beat or command.seconds)
        if command.beat:
            worker.heartbeat.between()


@handles(Listen)
def listen(worker: Worker, command: Listen, tensors: list[torch.Tensor]) -> None:
    worker.endpoint.receive(Channel.PEER, worker.rank)


def test_who_answers_is_alive_however_long_the_work_takes() -> None:
    with in_process_crew(3) as crew:
        crew.vigil.choose(1.0)
        crew.tell(2, Idle(3.0, beat=0.1))
        assert [v.value for v in crew.ask(lambda rank: Double(rank), Value)] == [2, 4, 6]
        assert crew.vigil.said == []


def test_a_silent_worker_is_named() -> None:
    with in_process_crew(3) as crew:
        crew.vigil.choose(1.0)
        crew.tell(2, Idle(4.0))
        with pytest.raises(SilentRank, match=r"worker on rank 2 \(.*\) has been silent for 1 s"):
            crew.ask(lambda rank: Double(rank), Value)


def test_workers_that_all_wait_for_ever_end_the_job() -> None:
    told = r"the owner has waited .* all its workers wait too \(rank 1 for \d s in Listen, rank 2"
    with in_process_crew(2) as crew:
        crew.vigil.choose(1.0)
        for rank in crew.ranks:
            crew.tell(rank, Listen())
        with pytest.raises(FedMPIError, match=told):
            crew.ask(lambda rank: Double(rank), Value)


def test_the_limit_follows_the_rounds() -> None:
    with in_process_crew(1) as crew:
        assert crew.vigil.limit == heartbeat.FIRST_LIMIT
        crew.vigil.observe(0.2)
        assert crew.vigil.limit == vigil.SHORTEST_LIMIT
        crew.vigil.observe(30.0)
        crew.vigil.observe(1.0)
        assert crew.vigil.limit == 300.0
        crew.vigil.choose(5.0)
        assert crew.vigil.limit == 5.0


def test_a_worker_without_an_owner_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "OWNER_LIMIT", 0.5)
    with in_process_crew(1) as crew:
        time.sleep(2)
        with pytest.raises(FedMPIError, match="ended by another rank"):
            crew.ask(lambda rank: Double(rank), Value)


def test_a_worker_without_an_owner_leaves_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "OWNER_LIMIT", 0.5)
    with in_process_crew(1) as crew:
        crew.tell(1, Listen())
        time.sleep(3)
        with pytest.raises(FedMPIError, match="ended by another rank"):
            crew.ask(lambda rank: Double(rank), Value)
