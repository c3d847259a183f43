"""What both transports promise, below the frames."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.threads import Aborted, Hub
from fedmpi.comm.transport import ANY, Transport
from tests.comm.worlds import World, run_threads
from tests.launch import Launcher, launchers

NOTES, BUFFERS = 30, 31


def test_who_is_who(world: World) -> None:
    def scenario(transport: Transport) -> tuple[int, int, bool]:
        assert 0 <= transport.local_rank <= transport.rank
        return transport.rank, transport.size, transport.in_process

    for rank, found in world.run(scenario).items():
        assert found == (rank, world.size, bool(world.threads))


def test_nothing_has_arrived_before_it_was_sent(world: World) -> None:
    def scenario(transport: Transport) -> None:
        assert transport.poll_note(ANY, NOTES, 100) is None
        buffer = torch.zeros(10, dtype=torch.uint8)
        right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        receive = transport.receive_buffer(buffer, left, BUFFERS)
        if transport.rank == 0:
            assert not receive.done()
            transport.finish(transport.send_buffer(torch.ones_like(buffer), right, BUFFERS))
            transport.finish(receive)
        else:
            transport.finish(receive)
            transport.finish(transport.send_buffer(torch.ones_like(buffer), right, BUFFERS))
        assert buffer.tolist() == [1] * 10
        assert receive.done()

    world.run(scenario)


def test_empty_and_small_buffers_keep_their_order(world: World) -> None:
    def scenario(transport: Transport) -> None:
        right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        lengths = [0, 1, 0, 17, 100_000, 0, 3]
        into = [torch.zeros(n, dtype=torch.uint8) for n in lengths]
        receives = [transport.receive_buffer(buffer, left, BUFFERS) for buffer in into]
        sends = [
            transport.send_buffer(torch.full((n,), k + 1, dtype=torch.uint8), right, BUFFERS)
            for k, n in enumerate(lengths)
        ]
        for transfer in (*reversed(receives), *sends):  # finished in any order
            transport.finish(transfer)
        assert [b.tolist() for b in into] == [[k + 1] * n for k, n in enumerate(lengths)]

    world.run(scenario)


def test_messages_are_counted(world: World) -> None:
    def scenario(transport: Transport) -> tuple[int, int]:
        before = transport.bytes_sent, transport.messages_sent
        right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        note = transport.send_note(b"12345", right, NOTES)
        sent = transport.send_buffer(torch.zeros(70, dtype=torch.uint8), right, BUFFERS)
        assert transport.wait(lambda: transport.poll_note(left, NOTES, 5)) == (left, b"12345")
        transport.finish(
            transport.receive_buffer(torch.zeros(70, dtype=torch.uint8), left, BUFFERS)
        )
        transport.finish(note)
        transport.finish(sent)
        return transport.bytes_sent - before[0], transport.messages_sent - before[1]

    assert set(world.run(scenario).values()) == {(75, 2)}


def test_a_buffer_of_another_length_is_refused_and_one_unknown_thrown_away(world: World) -> None:
    def scenario(transport: Transport) -> None:
        right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
        lengths = (9, 11, 100_000, 10)
        sent = [
            transport.send_buffer(torch.full((n,), n % 256, dtype=torch.uint8), right, BUFFERS)
            for n in lengths
        ]
        for found in lengths[:2]:
            taken = transport.take_buffer(torch.zeros(10, dtype=torch.uint8), left, BUFFERS)
            said = f"rank {left} sent {found} bytes, rank {transport.rank} expected 10"
            with pytest.raises(ProtocolError, match=said):
                transport.finish(taken)
        transport.wait(lambda: transport.drop_buffer(left, BUFFERS) or None)
        buffer = torch.zeros(10, dtype=torch.uint8)
        transport.finish(transport.take_buffer(buffer, left, BUFFERS))
        assert buffer.tolist() == [10] * 10
        assert not transport.drop_buffer(left, BUFFERS)
        for transfer in sent:
            transport.finish(transfer)

    world.run(scenario)


# ---- threads ----


def test_a_buffer_of_another_length_is_refused() -> None:
    def scenario(transport: Transport) -> None:
        buffer = torch.zeros(10 + transport.rank, dtype=torch.uint8)
        if transport.rank:
            transport.finish(transport.send_buffer(buffer, 0, BUFFERS))
        else:
            transport.finish(transport.receive_buffer(buffer, 1, BUFFERS))

    with pytest.raises(ProtocolError, match="rank 1 sent 11 bytes, rank 0 expected 10"):
        run_threads(Hub(2), scenario)


def test_a_note_over_the_limit_is_refused() -> None:
    def scenario(transport: Transport) -> None:
        if transport.rank:
            transport.send_note(bytes(101), 0, NOTES)
        else:
            transport.wait(lambda: transport.poll_note(ANY, NOTES, 100))

    with pytest.raises(ProtocolError, match="rank 1 sent a header of 101 bytes"):
        run_threads(Hub(2), scenario)


@pytest.mark.parametrize("size", [2, 8])
def test_an_abort_wakes_every_waiting_thread(size: int) -> None:
    hub, ended = Hub(size), []

    def wait(rank: int) -> None:
        with pytest.raises(Aborted, match="the job was ended by another rank"):
            hub.transport(rank).wait(lambda: None)
        ended.append(rank)

    waiting = [threading.Thread(target=wait, args=(rank,)) for rank in range(1, size)]
    for thread in waiting:
        thread.start()
    hub.transport(0).abort(3)
    for thread in waiting:
        thread.join(10)
    assert sorted(ended) == list(range(1, size))
    assert hub.aborted == 3
    with pytest.raises(Aborted):
        hub.transport(0).wait(lambda: True)  # an ended job does nothing more


# ---- MPI ----

ABORT = """
import time
from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport
from fedmpi.comm.transport import ANY
transport = MpiTransport(launched())
if transport.rank == 1:
    time.sleep(0.5)
    transport.abort(3)
transport.wait(lambda: transport.poll_note(ANY, 30, 100))
"""

LIMIT = """
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport
from fedmpi.comm.transport import ANY
transport = MpiTransport(launched())
if transport.rank:
    transport.finish(transport.send_note(bytes(101), 0, 30))
else:
    try:
        transport.wait(lambda: transport.poll_note(ANY, 30, 100))
    except ProtocolError as error:
        print(error, flush=True)
    transport.abort(0)
"""

LONG = """
import ctypes, mmap, sys, time
from pathlib import Path
import torch
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport
from fedmpi.errors import FedMPIError
transport = MpiTransport(launched())
memory = torch.frombuffer(mmap.mmap(-1, 4 << 20), dtype=torch.uint8)
if transport.rank:
    moved = transport.send_buffer(memory, 0, 30)
    if GONE:
        ctypes.CDLL(None).munmap(ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(4 << 20))
    transport.finish(transport.send_note(b"there", 0, 31))
    time.sleep(60)
else:
    transport.wait(lambda: transport.poll_note(1, 31, 100))
    try:
        part = memory if GONE else memory[:1000]
        transport.finish(transport.receive_buffer(part, 1, 30))
    except (FedMPIError, ProtocolError) as error:
        # What is printed may be lost with a job that ends.
        Path(sys.argv[1]).write_text(f"{type(error).__name__} {error}")
    transport.abort(1)
"""


@pytest.fixture(params=sorted(launchers()) or [pytest.param("", marks=pytest.mark.skip("no MPI"))])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return launchers()[request.param]


@pytest.mark.launch
def test_an_abort_ends_every_waiting_rank(launcher: Launcher) -> None:
    begun = time.monotonic()
    done = launcher.run(3, ["-c", ABORT], timeout=60)
    assert done.returncode != 0
    assert time.monotonic() - begun < 50


@pytest.mark.launch
def test_mpi_refuses_a_note_over_the_limit(launcher: Launcher) -> None:
    done = launcher.run(2, ["-c", LIMIT], timeout=60)
    assert "rank 1 sent a header of 101 bytes" in done.stdout, done.stderr


@pytest.mark.launch
@pytest.mark.skipif("mpich" not in launchers(), reason="no MPICH")
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "longer"])
def test_a_message_that_cannot_be_read_and_one_of_another_length(
    gone: bool, tmp_path: Path
) -> None:
    """MPICH reads a long one out of its sender's memory, which goes when that is killed."""
    told = tmp_path / "told"
    done = launchers()["mpich"].run(2, ["-c", LONG.replace("GONE", str(gone)), told], timeout=60)
    assert told.exists(), (done.returncode, done.stdout, done.stderr)
    expected = (
        "FedMPIError MPI cannot move a message, as when another rank has died: "
        if gone
        else "ProtocolError rank 0 got a message of another length than the one that was due"
    )
    assert told.read_text().startswith(expected), told.read_text()
