"""Sealed messages: they arrive as they were sent, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from fedmpi.comm import sealed
from fedmpi.comm.collective import broadcast, reduce_sum
from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.sealed import SealedTransport
from fedmpi.comm.threads import Hub
from fedmpi.comm.transport import ANY, Pending, Transport
from tests.comm.worlds import World, run_threads

KEY = bytes(range(32))
NOTES, BUFFERS = 30, 31
BROKEN = "is not what was sent"


def numbered(n: int) -> torch.Tensor:
    return (torch.arange(n) % 251).to(torch.uint8)


def test_what_arrives_is_what_was_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "SEGMENT", 1000)  # several segments, the last one short or full
    lengths = [0, 1, 999, 1000, 1001, 2000, 70_001]

    def scenario(inner: Transport) -> None:
        transport = SealedTransport(inner, KEY)
        right, left = (inner.rank + 1) % inner.size, (inner.rank - 1) % inner.size
        into = [torch.zeros(n, dtype=torch.uint8) for n in lengths]
        receives = [transport.receive_buffer(buffer, left, BUFFERS) for buffer in into]
        sends = [transport.send_buffer(numbered(n), right, BUFFERS) for n in lengths]
        notes = [transport.send_note(b"x" * n, right, NOTES) for n in lengths]
        for transfer in (*receives, *sends):
            transport.finish(transfer)
        assert [b.tolist() for b in into] == [numbered(n).tolist() for n in lengths]
        for n in lengths:
            sender, note = transport.wait(lambda: transport.poll_note(ANY, NOTES, 70_001))
            assert (sender, note) == (left, b"x" * n)
        for transfer in notes:  # a long one leaves when it is received
            transport.finish(transfer)

    world.run(scenario)


def test_broadcast_and_sum(world: World) -> None:
    def scenario(inner: Transport) -> None:
        transport = SealedTransport(inner, KEY)
        group = range(inner.size)
        model = torch.arange(5000.0) if inner.rank == 0 else torch.zeros(5000)
        broadcast(transport, group, [model], "tree", 4096)
        assert torch.equal(model, torch.arange(5000.0))
        total = torch.full((5000,), inner.rank + 1)
        reduce_sum(transport, group, total, "tree", 4096)
        if inner.rank == 0:
            assert (total == inner.size * (inner.size + 1) // 2).all()

    world.run(scenario)


def test_nothing_is_readable_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    secret, seen = b"a secret of sixteen bytes or more", []

    class Tapped(type(Hub(1).transport(0))):  # type: ignore[misc]
        def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
            seen.append(note)
            return super().send_note(note, destination, tag)

        def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
            seen.append(buffer.numpy().tobytes())
            return super().send_buffer(buffer, destination, tag)

    transport = SealedTransport(Tapped(Hub(2), 0), KEY)
    vector = torch.frombuffer(bytearray(secret), dtype=torch.uint8)
    for _ in range(2):
        transport.send_note(secret, 1, NOTES)
        transport.send_buffer(vector, 1, BUFFERS)
    assert len(set(seen)) == 4  # the same message is another one every time
    assert not any(secret[k : k + 4] in message for message in seen for k in range(len(secret) - 4))


Send = Callable[[bytes, int], object]


def attacked(attack: Callable[[list[bytes], Send], None], buffers: bool) -> str:
    """What rank 1 says of three messages of rank 0 after an attacker had them."""
    heard: dict[int, str] = {}

    def scenario(inner: Transport) -> None:
        if inner.rank == 0:
            on_the_wire: list[bytes] = []

            class Caught(type(inner)):  # type: ignore[misc]
                def send_note(self, note: bytes, destination: int, tag: int) -> None:
                    on_the_wire.append(note)

                def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> None:
                    on_the_wire.append(buffer.numpy().tobytes())

            caught = SealedTransport(Caught(inner.hub, 0), KEY)  # type: ignore[attr-defined]
            for k in range(3):
                if buffers:
                    caught.send_buffer(torch.full((100,), k, dtype=torch.uint8), 1, BUFFERS)
                else:
                    caught.send_note(bytes([k]) * 100, 1, NOTES)

            def send(message: bytes, tag: int = BUFFERS if buffers else NOTES) -> None:
                if buffers:
                    memory = torch.frombuffer(bytearray(message), dtype=torch.uint8)
                    inner.send_buffer(memory, 1, tag)
                else:
                    inner.send_note(message, 1, tag)

            attack(on_the_wire, send)
            return
        transport = SealedTransport(inner, KEY)
        try:
            for k in range(3):
                if buffers:
                    into = torch.zeros(100, dtype=torch.uint8)
                    transport.finish(transport.take_buffer(into, 0, BUFFERS))
                    assert into.tolist() == [k] * 100
                else:
                    _, note = transport.wait(lambda: transport.poll_note(ANY, NOTES, 100))
                    assert note == bytes([k]) * 100
            heard[1] = ""
        except ProtocolError as error:
            heard[1] = str(error)

    run_threads(Hub(2), scenario)
    return heard[1]


def untouched(wire: list[bytes], send: Send) -> None:
    for message in wire:
        send(message)


def changed(wire: list[bytes], send: Send) -> None:
    send(wire[0])
    spoiled = bytearray(wire[1])
    spoiled[17] ^= 1
    send(bytes(spoiled))


def repeated(wire: list[bytes], send: Send) -> None:
    for message in (wire[0], wire[0]):
        send(message)


def reordered(wire: list[bytes], send: Send) -> None:
    for message in (wire[0], wire[2]):
        send(message)


def withheld(wire: list[bytes], send: Send) -> None:
    for message in wire[1:]:
        send(message)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("attack", [changed, repeated, reordered, withheld])
def test_an_attacker_is_noticed(attack, buffers: bool) -> None:
    assert attacked(untouched, buffers) == ""
    told = attacked(attack, buffers)
    assert BROKEN in told
    assert "of rank 0 to rank 1" in told


def test_a_message_of_another_direction_tag_or_key() -> None:
    notes: dict[tuple[int, int, int], bytes] = {}

    class Caught(type(Hub(1).transport(0))):  # type: ignore[misc]
        def send_note(self, note: bytes, destination: int, tag: int) -> None:
            notes[self.rank, destination, tag] = note

    hub = Hub(3)
    for rank, destination in ((0, 1), (2, 1), (1, 0)):
        for tag in (Channel.COMMAND, Channel.REPLY):
            SealedTransport(Caught(hub, rank), KEY).send_note(b"same", destination, tag)
    assert len(set(notes.values())) == len(notes)
    for source, tag, key, right in [
        (0, Channel.COMMAND, KEY, True),
        (0, Channel.REPLY, KEY, False),
        (2, Channel.COMMAND, KEY, False),
        (0, Channel.COMMAND, KEY[::-1], False),
    ]:
        hub = Hub(3)
        hub.transport(source).send_note(notes[0, 1, Channel.COMMAND], 1, tag)
        receiver = SealedTransport(hub.transport(1), key)
        if right:
            assert receiver.poll_note(source, tag, 100) == (0, b"same")
        else:
            with pytest.raises(ProtocolError, match=BROKEN):
                receiver.poll_note(source, tag, 100)


def test_nonces_never_come_twice() -> None:
    packed = [
        sealed._NONCE.pack(tag, segment, number)
        for tag in (0, 1, 65_535)
        for segment in (0, 1, 65_535)
        for number in (1, 2, 2**40)
    ]
    assert len(set(packed)) == len(packed)
    assert {len(nonce) for nonce in packed} == {12}
    assert all(a != b for a, b in pairwise(sorted(packed)))
