"""Whole frames, from rank to rank, on every transport."""

from __future__ import annotations

import msgspec
import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.frame import DTYPES, INLINE_BYTES, ProtocolError, encode, numbered
from fedmpi.comm.threads import Hub
from fedmpi.comm.transport import Transport
from tests.comm.worlds import World, run_threads, same
from tests.launch import launchers


class Numbered(msgspec.Struct, frozen=True):
    source: int
    number: int
    text: str = ""


def message_of(frame) -> Numbered:
    return msgspec.msgpack.decode(frame.message, type=Numbered)


def ring(transport: Transport, tensors: list[torch.Tensor], own: list[torch.Tensor]) -> None:
    """Every rank sends `own` to the next one and expects `tensors` of the one before it."""
    endpoint = Endpoint(transport)
    source, destination = (
        (transport.rank - 1) % transport.size,
        (transport.rank + 1) % transport.size,
    )
    endpoint.send(destination, Channel.COMMAND, Numbered(transport.rank, 7, "é" * 100), own)
    frame = endpoint.receive(Channel.COMMAND, source)
    assert frame.source == source
    assert message_of(frame) == Numbered(source, 7, "é" * 100)
    assert len(frame.tensors) == len(tensors)
    for found, expected in zip(frame.tensors, tensors, strict=True):
        assert same(found, expected)
        assert found.is_contiguous()
        assert not found.requires_grad
    # In memory of their own: writing to one changes no other, here or at the sender's.
    kept = [t.clone() for t in own]
    endpoint.flush()
    for found in frame.tensors:
        found.reshape(-1).view(torch.uint8).fill_(0)
    assert all(same(a, b) for a, b in zip(own, kept, strict=True))


def shapes_of(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Every layout that a tensor may have, of random bytes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        high = 2 if dtype == torch.bool else 256
        n = torch.Size(shape).numel() * dtype.itemsize
        return (
            torch.randint(0, high, (n,), generator=generator, dtype=torch.uint8)
            .view(dtype)
            .view(shape)
        )

    most = INLINE_BYTES // dtype.itemsize
    matrix, long = random(6, 10), random(4, most)
    return [
        random(),
        random(0),
        random(3, 0, 5),
        random(1, 1, 1),
        matrix,
        matrix.t(),
        matrix[1:4, ::3],
        matrix[2],
        matrix.expand(3, 6, 10),
        random(2, 3, 4, 5).permute(3, 1, 0, 2),
        random(most - 1),
        random(most),
        random(most + 1),
        long,
        long.t(),
        long[:, ::2],
        long[1:3],
        random(1).expand(2 * most),
    ]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_and_layout_arrives(world: World, dtype: torch.dtype) -> None:
    def scenario(transport: Transport) -> None:
        before = (transport.rank - 1) % transport.size
        ring(transport, shapes_of(dtype, before), shapes_of(dtype, transport.rank))

    world.run(scenario)


def test_large_buffers_arrive(world: World) -> None:
    """64 MiB between the first ranks at the same time in both directions, then on its own."""
    n = 2**24

    def scenario(transport: Transport) -> None:
        if transport.rank < 2:
            endpoint, other = Endpoint(transport), 1 - transport.rank
            sent = torch.arange(n, dtype=torch.int32).add_(transport.rank)
            endpoint.send(other, Channel.REPLY, Numbered(transport.rank, 0), [sent])
            (found,) = endpoint.receive(Channel.REPLY, other).tensors
            endpoint.flush()
            assert same(found, torch.arange(n, dtype=torch.int32).add_(other))

    world.run(scenario)


def test_many_messages_in_flight_keep_their_order(world: World) -> None:
    """10,000 frames from all to all before anybody receives one."""
    each = 10_000 // (world.size * (world.size - 1))

    def scenario(transport: Transport) -> None:
        endpoint = Endpoint(transport)
        others = [rank for rank in range(transport.size) if rank != transport.rank]
        for number in range(each):
            for rank in others:
                endpoint.send(
                    rank, Channel.COMMAND, Numbered(transport.rank, number), [torch.tensor(number)]
                )
        heard = dict.fromkeys(others, 0)
        for _ in range(each * len(others)):
            frame = endpoint.receive(Channel.COMMAND)
            assert message_of(frame) == Numbered(frame.source, heard[frame.source])
            assert frame.tensors[0].item() == heard[frame.source]
            heard[frame.source] += 1
        endpoint.flush()
        assert set(heard.values()) == {each}

    world.run(scenario)


def test_many_buffers_in_flight(world: World) -> None:
    """Frames whose tensors have to wait until the receiver asks: none is lost, none mixed up."""
    count, n = 300, INLINE_BYTES // 8 + 1

    def scenario(transport: Transport) -> None:
        endpoint, other = Endpoint(transport), transport.size - 1
        if transport.rank == 0:
            for number in range(count):
                content = torch.full((n,), number)
                endpoint.send(other, Channel.COMMAND, Numbered(0, number), [content])
            endpoint.receive(Channel.REPLY, other)
            endpoint.flush()
        elif transport.rank == other:
            for number in range(count):
                frame = endpoint.receive(Channel.COMMAND, 0)
                assert message_of(frame).number == number
                assert same(frame.tensors[0], torch.full((n,), number))
            endpoint.send(0, Channel.REPLY, Numbered(other, count))
            endpoint.flush()

    world.run(scenario)


def test_buffers_follow_their_own_headers(world: World) -> None:
    """Frames with and without buffers, of several lengths and from several ranks, mixed."""

    def scenario(transport: Transport) -> None:
        endpoint = Endpoint(transport)
        lengths = [0, 1, 3000, 5, 7000, 2000]
        if transport.rank:
            for number, n in enumerate(lengths):
                content = torch.full((n,), transport.rank * 100 + number)
                endpoint.send(
                    0, Channel.REPLY, Numbered(transport.rank, number), [content, content[:1]]
                )
            endpoint.flush()
            return
        heard = dict.fromkeys(range(1, transport.size), 0)
        for _ in range(len(lengths) * len(heard)):
            frame = endpoint.receive(Channel.REPLY)
            number = heard[frame.source]
            assert message_of(frame) == Numbered(frame.source, number)
            expected = torch.full((lengths[number],), frame.source * 100 + number)
            assert same(frame.tensors[0], expected)
            assert same(frame.tensors[1], expected[:1])
            heard[frame.source] += 1

    world.run(scenario)


def test_channels_do_not_mix_and_a_source_can_be_chosen(world: World) -> None:
    def scenario(transport: Transport) -> None:
        endpoint, last = Endpoint(transport), transport.size - 1
        if transport.rank:
            for channel in (Channel.COMMAND, Channel.REPLY):
                endpoint.send(0, channel, Numbered(transport.rank, channel))
            endpoint.flush()
            return
        for channel in (Channel.REPLY, Channel.COMMAND):
            for rank in range(last, 0, -1):
                frame = endpoint.receive(channel, rank)
                assert message_of(frame) == Numbered(rank, channel)

    world.run(scenario)


def test_a_frame_without_tensors_and_one_of_empty_tensors(world: World) -> None:
    def scenario(transport: Transport) -> None:
        ring(transport, [], [])
        empty = [torch.empty(0), torch.empty(2, 0, dtype=torch.int8), torch.empty(0, 2**40)]
        ring(transport, empty, empty)

    world.run(scenario)


def test_what_is_no_frame_is_refused_by_name() -> None:
    def scenario(transport: Transport) -> None:
        if transport.rank:
            transport.send_note(numbered(b"\xc1 not a frame", 1), 0, Channel.COMMAND)
        else:
            Endpoint(transport).receive(Channel.COMMAND)

    with pytest.raises(ProtocolError, match="a frame of 13 bytes has no readable header"):
        run_threads(Hub(2), scenario)


@pytest.mark.parametrize(
    ("order", "number", "due"),
    [((0, 1, 1, 2), 2, 3), ((1, 2), 2, 1), ((0, 2), 3, 2), ((1, 0), 2, 1), ((0, 1, 0), 1, 3)],
    ids=["twice", "the first is lost", "lost", "overtaken", "from long ago"],
)
def test_a_frame_that_is_not_the_one_that_was_due_is_noticed(
    order: tuple[int, ...], number: int, due: int
) -> None:
    """What was sent on a channel arrives in another order, with some of it twice or never."""

    def scenario(transport: Transport) -> None:
        if transport.rank:
            for index in order:
                note, _ = encode(Numbered(1, index), [])
                transport.send_note(numbered(note, index + 1), 0, Channel.REPLY)
            return
        endpoint = Endpoint(transport)
        sentence = f"^rank 0 got frame {number} of rank 1 on channel reply, where frame {due} was"
        for index in range(due - 1):
            assert message_of(endpoint.receive(Channel.REPLY)) == Numbered(1, index)
        with pytest.raises(ProtocolError, match=sentence):
            endpoint.receive(Channel.REPLY)

    run_threads(Hub(2), scenario)


def test_a_note_without_a_number_is_not_the_one_that_was_due() -> None:
    def scenario(transport: Transport) -> None:
        if transport.rank:
            transport.send_note(b"short", 0, Channel.REPLY)
        else:
            Endpoint(transport).receive(Channel.REPLY)

    with pytest.raises(ProtocolError, match="got frame 0 of rank 1"):
        run_threads(Hub(2), scenario)


THREE_GIB = """
import msgspec, sys, torch
from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport

class Note(msgspec.Struct): text: str = ""

torch.set_num_threads(1)
n = 3 * 2**30 // 8 + 1
endpoint = Endpoint(MpiTransport(launched()))
if endpoint.rank == 0:
    endpoint.send(1, Channel.COMMAND, Note(), [torch.arange(n), torch.arange(3)])
    endpoint.flush()
    assert endpoint.transport.bytes_sent > 8 * n
else:
    frame = endpoint.receive(Channel.COMMAND, 0)
    found, small = frame.tensors
    assert found.shape == (n,) and small.tolist() == [0, 1, 2]
    step = 2**24
    for start in range(0, n, step):
        stop = min(start + step, n)
        assert torch.equal(found[start:stop], torch.arange(start, stop)), start
    print("all there", found.nbytes)
"""


@pytest.mark.long
@pytest.mark.launch
@pytest.mark.parametrize("name", sorted(launchers()))
def test_more_than_two_gib_arrive(name: str) -> None:
    done = launchers()[name].run(2, ["-c", THREE_GIB], timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"all there {3 * 2**30 + 8}\n"
