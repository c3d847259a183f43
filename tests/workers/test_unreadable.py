"""Frames that arrive and cannot be read: the worker says so, keeps what it has, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import ProtocolError, decode, encode
from fedmpi.errors import RemoteError
from fedmpi.workers.command import Command, Stop
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.operate import Call, Clear, Done, Fetch, Fetched, Look, Operate, Put, Wait
from fedmpi.workers.signature import Signature
from tests.comm.worlds import World
from tests.workers.crews import Value

X = {"tensor": 0}
RELU = Operate([(0, Signature("relu", [X], {}, 0))], [Call(1, 0, [1], [], [2])], [1])
LARGE = torch.arange(2000.0)
"""Travels as a buffer."""


def lead(world: World, scenario: Callable[[Crew], None]) -> None:
    """Runs it on the owner, with worker 1 holding object 7, and nothing left to wait for."""

    def filled(crew: Crew) -> None:
        fill(crew)
        scenario(crew)
        assert failure(crew) == ""

    world.lead(filled)


def note_of(command: Any, tensors: Sequence[torch.Tensor] = (), asks: bool = False) -> bytes:
    return encode(command, tensors, asks)[0]


def send(crew: Crew, note: bytes, buffers: Sequence[torch.Tensor] = ()) -> None:
    """Sends bytes as they are; over MPI they have left their memory at the next wait."""
    crew.busy = True
    crew.endpoint._post(note, [raw.view(torch.uint8) for raw in buffers], 1, Channel.COMMAND)


def failure(crew: Crew) -> str:
    """What the worker has to say at the next wait; empty if all went well."""
    crew.tell(1, Wait())
    return answer(crew)


def answer(crew: Crew) -> str:
    try:
        crew.hear([1], Done)
    except RemoteError as error:
        return str(error)
    return ""


def fill(crew: Crew) -> None:
    crew.tell(1, Clear())
    answer(crew)
    crew.tell(1, Put(7, [], "", False), [torch.ones(3)])
    assert failure(crew) == ""


def assert_obeys(crew: Crew) -> None:
    """What was there is there, and can be computed with."""
    crew.tell(1, Operate([(9, Signature("neg", [X], {}, 0))], [Call(1, 9, [7], [], [8])], []))
    crew.tell(1, Fetch(8))
    [(_, [tensor])] = crew.hear_tensors([1], Fetched)
    assert torch.equal(tensor, -torch.ones(3))
    crew.tell(1, Operate([], [], [8]))


NO_HEADER = [b"", b"\xc1", b"\x93" + b"\x91" * 100_000, note_of(RELU)[:-1], note_of(RELU) + b"\0"]
FIELDS = msgspec.to_builtins(RELU)
[[_, [FIRST, *REST]]] = FIELDS["signatures"]
NO_COMMAND = [
    {},
    "Stop",
    7,
    {"type": "os.system", "command": "true"},
    {"type": "aten::from_file"},
    {**FIELDS, "type": "Operatf"},
    msgspec.to_builtins(Value(1.0)),  # a reply
    {**FIELDS, "dead": ["1"]},
    {**FIELDS, "dead": [1.5]},
    {**FIELDS, "calls": [[1, 0, ["a"], [], [2]]]},
    {**FIELDS, "calls": [[1, "0", [1], [], [2]]]},
    {**FIELDS, "calls": [[1, 0, [1], ["x"], [2]]]},
    {**FIELDS, "signatures": [["0", [FIRST, *REST]]]},
    {**FIELDS, "signatures": [[0, [7, *REST]]]},
    {k: v for k, v in FIELDS.items() if k != "calls"},
]


def test_what_is_no_frame_is_told_at_the_next_wait(world: World) -> None:
    def scenario(crew: Crew) -> None:
        for note in NO_HEADER:
            send(crew, note)
            assert "worker on rank 1: a frame of" in failure(crew)
            assert_obeys(crew)

    lead(world, scenario)


def test_what_is_no_command_is_told_at_the_next_wait(world: World) -> None:
    def scenario(crew: Crew) -> None:
        for fields in NO_COMMAND:
            send(crew, note_of(fields))
            assert "worker on rank 1: a frame without a known command" in failure(crew)
            assert_obeys(crew)
            # Its tensors are taken in and forgotten.
            send(crew, note_of(fields, [torch.ones(2), LARGE]), [LARGE])
            assert "a frame without a known command" in failure(crew)
            crew.tell(1, Put(9, [], "", False), [LARGE])
            assert failure(crew) == ""
            crew.tell(1, Operate([], [], [9]))

    lead(world, scenario)


def test_who_asks_what_nobody_can_read_is_answered(world: World) -> None:
    """Or the owner would wait for ever: it cannot know that nobody knows its command."""

    def scenario(crew: Crew) -> None:
        for fields in ({"type": "Fetch", "key": "1"}, {"type": "FetchAll"}):
            send(crew, note_of(fields, asks=True))
            assert "a frame without a known command" in answer(crew)
            assert failure(crew) == ""  # it was told once
            assert_obeys(crew)

    lead(world, scenario)


def test_the_first_failure_is_the_one_that_is_told(world: World) -> None:
    def scenario(crew: Crew) -> None:
        crew.tell(1, Put(7, [], "", False), [torch.ones(1)])
        send(crew, note_of({"type": "FetchAll"}, asks=True))
        assert "has an object 7 already" in answer(crew)
        assert_obeys(crew)

    lead(world, scenario)


@pytest.mark.parametrize("sent", [1500, 2500])
def test_a_buffer_of_a_false_length_is_told_and_no_more_are_taken(world: World, sent: int) -> None:
    def scenario(crew: Crew) -> None:
        send(crew, note_of(Put(9, [], "", False), [LARGE]), [torch.zeros(sent)])
        assert "8000" in failure(crew)
        crew.tell(1, Fetch(9))
        with pytest.raises(RemoteError, match="rank 1 holds no object 9"):
            crew.hear([1], Fetched)
        assert_no_buffers(crew)

    lead(world, scenario)


def test_what_follows_a_broken_header_is_thrown_away(world: World) -> None:
    def scenario(crew: Crew) -> None:
        # Longer than what MPI sends ahead: nobody gets this memory back before it is received.
        send(crew, b"\xc1", [LARGE, torch.zeros(500_000)])
        assert "no readable header" in failure(crew)
        assert_no_buffers(crew)

    lead(world, scenario)


def assert_no_buffers(crew: Crew) -> None:
    """Whose they are is not known: they might be stored as what they are not."""
    crew.tell(1, Put(10, [], "", False), [LARGE])
    assert "takes no tensor of more than 4096 bytes from rank 0 any more" in failure(crew)
    assert_obeys(crew)


def test_more_than_all_memory_is_refused_before_it_is_taken(world: World) -> None:
    def scenario(crew: Crew) -> None:
        note = note_of(Put(9, [], "", False), [LARGE])
        send(crew, note.replace(b"\x91\xcd\x07\xd0", b"\x91\xcf\x00\x00\x10\x00\x00\x00\x00\x00"))
        assert "bytes of tensors: at most" in failure(crew)
        assert_obeys(crew)

    lead(world, scenario)


COMMANDS: list[tuple[Command, list[torch.Tensor]]] = [
    (RELU, []),
    (Put(9, ["#x"], "rows", False), [torch.ones(3)]),
    (Put(9, ["#x"], "rows", False), [LARGE]),
    (Look(["#x"]), []),
    (Fetch(7), []),
    (Wait(), []),
]


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[bytes, list[torch.Tensor]]:
    """A real frame with some bytes changed, cut or put in."""
    command, tensors = draw(st.sampled_from(COMMANDS))
    note, buffers = encode(command, tensors, draw(st.booleans()))
    changed = bytearray(note)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed), buffers


def is_told_and_forgotten(crew: Crew, note: bytes, buffers: list[torch.Tensor]) -> None:
    try:
        header = decode(note)
    except ProtocolError:
        header = None
    if header is not None:
        if sum(not t.inline for t in header.tensors) != len(buffers):
            return  # a sender that stops in the middle of a frame is waited for
        try:
            fields = msgspec.msgpack.decode(header.message)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            fields = None
        kind = fields.get("type") if isinstance(fields, dict) else None
        if kind == Stop.__name__:
            return
        asks = kind in ("Fetch", "Look", "Wait")
        if header.asks != asks:
            return  # a sender that does not keep count of its questions mistakes the answers
    send(crew, note, buffers)
    if header is not None and header.asks:
        crew.endpoint.receive(Channel.REPLY, 1)
    failure(crew)
    fill(crew)
    assert_obeys(crew)


def test_spoiled_frames_leave_a_worker_that_obeys(world: World) -> None:
    def scenario(crew: Crew) -> None:
        @settings(max_examples=300, database=None)
        @given(spoiled())
        def obeyed(frame: tuple[bytes, list[torch.Tensor]]) -> None:
            is_told_and_forgotten(crew, *frame)

        obeyed()

    lead(world, scenario)


def test_random_bytes_leave_a_worker_that_obeys(world: World) -> None:
    def scenario(crew: Crew) -> None:
        @settings(max_examples=200, database=None)
        @given(st.binary(max_size=200))
        @example(b"\x93\x01\xdd\xff\xff\xff\xff")  # 4 G tensors in 7 bytes
        @example(b"\x93\x01\x90\xc6\xff\xff\xff\xff")  # 4 GiB inline in 8 bytes
        def obeyed(note: bytes) -> None:
            is_told_and_forgotten(crew, note, [])

        obeyed()

    lead(world, scenario)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_random_commands_and_types_leave_a_worker_that_obeys() -> None:
    with in_process_crew(1) as crew:

        @settings(max_examples=300)
        @given(
            st.sampled_from(["Operate", "Put", "MakePrivate", "Accept", "Limit2", "exec"])
            | st.text(max_size=10),
            st.dictionaries(st.sampled_from(["key", "tags", "calls", "dead", "private"]), values),
        )
        def obeyed(kind: str, fields: dict[str, Any]) -> None:
            is_told_and_forgotten(crew, note_of({"type": kind, **fields}), [])

        obeyed()
