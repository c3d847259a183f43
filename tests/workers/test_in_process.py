"""Worker threads come and go with the crew, and the loop ends with the status it was told."""

from __future__ import annotations

import threading
import time

import pytest

from fedmpi.comm import endpoint
from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.threads import Aborted, Hub
from fedmpi.comm.transport import Transport
from fedmpi.errors import RemoteError
from fedmpi.workers.command import Command, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.worker import Worker
from tests.comm.worlds import run_threads
from tests.workers.crews import Double, Enter, Journal, Read, Urgent, Value


class Sleep(Command, frozen=True):
    seconds: float


@handles(Sleep)
def sleep(worker: Worker, command: Sleep, tensors: list) -> None:
    time.sleep(command.seconds)


def workers_alive() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("fedmpi-rank-")]


def gone(seconds: float = 10) -> bool:
    """Whether all worker threads end within some seconds."""
    limit = time.monotonic() + seconds
    while workers_alive() and time.monotonic() < limit:
        time.sleep(0.01)
    return not workers_alive()


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_threads_end_with_the_crew(workers: int) -> None:
    with in_process_crew(workers) as crew:
        assert len(workers_alive()) == workers
        assert crew.in_process
        assert crew.ask(lambda rank: Double(rank), Value)[-1] == Value(2.0 * workers)
    assert workers_alive() == []


def test_threads_end_after_an_error_of_the_owner() -> None:
    with pytest.raises(ZeroDivisionError), in_process_crew(3):
        _ = 1 / 0
    assert gone()


def test_threads_end_after_an_error_while_workers_are_busy() -> None:
    def owner() -> None:
        with in_process_crew(3) as crew:
            for rank in crew.ranks:
                for _ in range(100):
                    crew.tell(rank, Sleep(0.1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        owner()
    assert gone(5)  # each ends after the step that it was in, not after all 100


def test_threads_end_after_a_remote_error() -> None:
    def owner() -> None:
        with in_process_crew(2) as crew:
            crew.tell(2, Enter("x", "bug"))
            crew.tell(2, Read())
            crew.hear([2], Journal)

    with pytest.raises(RemoteError):
        owner()
    assert gone()


def test_a_worker_that_breaks_down_ends_the_job(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error outside any command, such as a header too long to be received, reaches the owner."""

    monkeypatch.setattr(endpoint, "HEADER_LIMIT", 100)

    def owner() -> None:
        with in_process_crew(2) as crew:
            crew.endpoint.transport.send_note(bytes(101), 2, Channel.COMMAND)
            crew.hear([2], Journal)

    with pytest.raises(Aborted):
        owner()
    assert gone()
    told = capfd.readouterr().err
    assert "fedmpi: rank 2: rank 0 sent a header of 101 bytes" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_an_urgent_failure_ends_any_wait_of_the_owner(workers: int) -> None:
    """The owner waits for a note that nobody will ever send, and for one of another worker."""

    def owner() -> None:
        with in_process_crew(workers) as crew:
            crew.tell(1, Sleep(0.0))
            crew.tell(workers, Urgent("sea"))
            crew.hear([1], Journal)

    with pytest.raises(RemoteError) as caught:
        owner()
    assert str(caught.value) == f"worker on rank {workers}: ZeroDivisionError: at sea"
    assert caught.value.remote_traceback.endswith("ZeroDivisionError: at sea\n")
    assert gone()


@pytest.mark.parametrize("status", [0, 3])
def test_stop_carries_a_status(status: int) -> None:
    def scenario(transport: Transport) -> int | None:
        if transport.rank:
            return Worker(Endpoint(transport)).serve()
        crew = Crew(Endpoint(transport))
        crew.ask(lambda rank: Double(1), Value)
        crew.stop(status)
        return None

    assert run_threads(Hub(4), scenario) == {0: None, 1: status, 2: status, 3: status}


def test_a_busy_crew_is_stopped_at_once() -> None:
    hub = Hub(3)

    def scenario(transport: Transport) -> int | None:
        if transport.rank:
            return Worker(Endpoint(transport)).serve()
        crew = Crew(Endpoint(transport))
        crew.tell(1, Sleep(0.2))
        crew.stop(4)
        return None

    assert run_threads(hub, scenario) == {0: None}
    assert hub.aborted in (1, 4)  # run_threads aborts too, in the end
