"""Owner and workers: commands in order, replies by rank, failures once."""

from __future__ import annotations

import time

import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.threads import Hub, ThreadTransport
from fedmpi.errors import FedMPIError, LostRank, RemoteError
from fedmpi.workers.command import Command, Signalled, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.heartbeat import Ping
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.vigil import SECONDS_BETWEEN_LOOKS
from fedmpi.workers.worker import Worker
from tests.comm.worlds import World
from tests.workers.crews import Double, Enter, EnterAlways, Journal, Need, Read, Value


class EndWith(Command, frozen=True):
    """Fail with an exit status of one's own."""

    status: int


class SayTo(Command, frozen=True):
    """Send a message to a rank on a channel, whatever it is."""

    to: int
    channel: int
    kind: str


class Gone(FedMPIError):
    """With whatever status."""


SAID = {"enter": Enter("of another worker"), "ping": Ping(1.0), "signal": Value(1.0)}


@handles(EndWith, replies=True)
def end_with(worker: Worker, command: EndWith, tensors: list[torch.Tensor]) -> None:
    error = Gone("leaving")
    error.exit_status = command.status
    raise error


@handles(SayTo, replies=True)
def say_to(worker: Worker, command: SayTo, tensors: list[torch.Tensor]) -> Value:
    worker.endpoint.send(command.to, Channel(command.channel), SAID[command.kind])
    return Value(0.0)


def journal(crew: Crew, rank: int) -> list[str]:
    crew.tell(rank, Read())
    return crew.hear([rank], Journal)[0].entries


def raised(crew: Crew, ranks: list[int], kind: type = Journal) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        crew.hear(ranks, kind)
    return caught.value


def test_replies_come_in_the_order_of_the_ranks(world: World) -> None:
    def scenario(crew: Crew) -> None:
        assert list(crew.ranks) == list(range(1, world.size))
        assert not crew.busy
        assert crew.ask(lambda rank: Double(rank), Value) == [Value(2.0 * r) for r in crew.ranks]
        backwards = list(reversed(crew.ranks))
        for rank in crew.ranks:
            crew.tell(rank, Double(rank), [torch.ones(rank), torch.ones(5000)])
        assert crew.busy
        assert crew.hear(backwards, Value) == [Value(3.0 * r + 5000) for r in backwards]
        assert not crew.busy

    world.lead(scenario)


def test_commands_are_obeyed_in_order(world: World) -> None:
    words = [str(n) for n in range(500)]

    def scenario(crew: Crew) -> None:
        for word in words:
            for rank in crew.ranks:
                crew.tell(rank, Enter(f"{word}/{rank}"))
        found = crew.ask(lambda rank: Read(), Journal)
        assert [j.entries for j in found] == [[f"{w}/{r}" for w in words] for r in crew.ranks]

    world.lead(scenario)


def test_the_first_failure_is_raised_once_and_the_worker_goes_on(world: World) -> None:
    def scenario(crew: Crew) -> None:
        last = crew.ranks[-1]
        for command in (
            Enter("a"),
            Enter("b", "bug"),
            Enter("c"),  # depends on what came before: skipped
            Enter("d", "refusal"),  # not the first
            EnterAlways("e"),  # others wait for it: done
            EnterAlways("f", "refusal"),  # done, but not the first to fail
            Read(),
        ):
            crew.tell(last, command)
        error = raised(crew, [last])
        assert str(error) == f"worker on rank {last}: ZeroDivisionError: at b"
        assert (error.rank, error.exit_status) == (last, 1)
        assert "in _enter\n" in error.remote_traceback
        assert error.remote_traceback.endswith("ZeroDivisionError: at b\n")
        assert journal(crew, last) == ["a", "e"]
        crew.tell(last, Enter("g"))
        assert journal(crew, last) == ["g"]

    world.lead(scenario)


def test_a_refusal_has_no_traceback_and_keeps_its_status(world: World) -> None:
    def scenario(crew: Crew) -> None:
        crew.tell(1, Enter("cake", "refusal"))
        crew.tell(1, Read())
        error = raised(crew, [1])
        assert str(error) == "worker on rank 1: cake is not to be had"
        assert (error.exit_status, error.remote_traceback) == (2, "")
        crew.tell(1, Enter("enough", "memory"))
        crew.tell(1, Read())
        error = raised(crew, [1])
        assert str(error) == "worker on rank 1: out of memory: enough"
        assert error.remote_traceback == ""

    world.lead(scenario)


def test_the_failure_of_an_always_handler_is_told_too(world: World) -> None:
    def scenario(crew: Crew) -> None:
        crew.tell(1, EnterAlways("x", "bug"))
        crew.tell(1, Read())
        assert str(raised(crew, [1])) == "worker on rank 1: ZeroDivisionError: at x"
        assert journal(crew, 1) == []

    world.lead(scenario)


def test_a_question_that_fails_is_answered_by_its_failure(world: World) -> None:
    def scenario(crew: Crew) -> None:
        crew.tell(1, Read(fails=True))
        crew.tell(1, Double(4))
        assert "ValueError: no reading today" in str(raised(crew, [1]))
        assert crew.hear([1], Value) == [Value(8.0)]  # the next question is a new one
        crew.tell(1, Need("nothing"))
        error = raised(crew, [1], Value)
        assert str(error) == "worker on rank 1: rank 1 holds no Tensor 'nothing'"

    world.lead(scenario)


def test_all_replies_are_taken_in_before_the_lowest_failure_is_raised(world: World) -> None:
    def scenario(crew: Crew) -> None:
        for rank in crew.ranks:
            crew.tell(rank, Enter(f"at {rank}", "bug" if rank != 2 else ""))
            crew.tell(rank, Read())
        assert raised(crew, list(crew.ranks)).rank == 1
        assert not crew.busy
        # Nothing is left over that could be mistaken for these answers:
        assert crew.ask(lambda rank: Double(rank), Value) == [Value(2.0 * r) for r in crew.ranks]

    world.lead(scenario)


def test_an_answer_of_another_kind_is_refused(world: World) -> None:
    def scenario(crew: Crew) -> None:
        crew.tell(1, Double(1))
        with pytest.raises(ProtocolError, match="rank 1 sent no Journal or Failure: "):
            crew.hear([1], Journal)
        crew.tell(1, Double(1))  # the wait that would have cleared `busy` was cut short
        assert crew.hear([1], Value) == [Value(2.0)]

    world.lead(scenario)


def test_tensors_may_change_after_the_wait(world: World) -> None:
    """What a command carries has left its memory once a reply is heard."""

    def scenario(crew: Crew) -> None:
        content = torch.zeros(100_000)
        for number in range(5):
            content.fill_(number)
            for rank in crew.ranks:
                crew.tell(rank, Double(0), [content])
            assert crew.hear(crew.ranks, Value) == [Value(number * 1e5)] * len(crew.ranks)

    world.lead(scenario)


@pytest.mark.parametrize(("told", "status"), [(0, 1), (1, 1), (2, 2), (75, 1), (-9, 1), (256, 1)])
def test_a_worker_ends_no_job_as_a_success(told: int, status: int) -> None:
    """Nor as a run that is to be started again, for ever."""
    with in_process_crew(1) as crew:
        crew.tell(1, EndWith(told))
        assert raised(crew, [1], Value).exit_status == status


def test_a_worker_takes_no_commands_of_another_one() -> None:
    with in_process_crew(2) as crew:
        crew.tell(2, SayTo(1, Channel.COMMAND, "enter"))
        crew.hear([2], Value)
        assert journal(crew, 1) == []


@pytest.mark.parametrize("kind", ["ping", "signal"])
def test_an_alarm_or_a_sign_of_life_that_is_none_is_refused(kind: str) -> None:
    channel, expected = {
        "ping": (Channel.BEAT, "rank 1 sent no Pong: "),
        "signal": (Channel.ALARM, "rank 1 sent no Failure or Signalled: "),
    }[kind]
    with in_process_crew(1) as crew:
        crew.tell(1, SayTo(0, channel, kind))

        def wait_twice() -> None:
            crew.hear([1], Value)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            crew.ask(lambda rank: Double(rank), Value)

        with pytest.raises(ProtocolError, match=expected):
            wait_twice()


def test_a_signal_that_asks_no_job_to_leave_is_none() -> None:
    with pytest.raises(ValueError, match="'SIGKILL' asks no job to leave"):
        Signalled("SIGKILL")


class Broken(ThreadTransport):
    """A rank has died, and the others do not come together."""

    broken = True
    met = 0

    def recover(self, *arguments: object) -> list[int]:
        self.met += 1
        raise FedMPIError("one of them hangs")


def test_who_did_not_come_together_is_not_called_a_second_time() -> None:
    """The others are in the meeting still: the job can only be aborted."""
    transport = Broken(Hub(3), 0)
    crew = Crew(Endpoint(transport))
    with pytest.raises(FedMPIError, match="one of them hangs"):
        crew.recover(LostRank("lost rank 2"))
    crew.stop(7)
    assert (transport.met, transport.hub.aborted) == (1, 7)
