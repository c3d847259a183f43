"""What a transport can do: the few operations that MPI and threads both offer."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
ANY = -1
"""Any source."""


class Pending(Protocol):
    """A transfer under way. Its buffer must stay alive and unchanged until `done`."""

    def done(self) -> bool:
        """Whether the buffer may be used again; drives the transfer."""
        ...


class Transport(ABC):
    """Point-to-point messages between ranks 0 to size - 1, in order per (source, tag).

    Two kinds of message, never on the same tag: a *note*, whose length the receiver
    learns on arrival, and a *buffer*, whose length both sides know.

    Attributes:
        rank: this process or thread.
        size: all of them, the owner included.
        local_rank: position among the ranks of this node; picks the GPU.
        nodes: a number for each rank, the same for those that share memory.
        takes_gpu_memory: buffers may lie on a GPU.
        in_process: ranks are threads of one process, and share PyTorch's default generator.
        watch: called while this rank waits for anything; what it raises ends the wait.
        waits: waits that have begun; two looks that see the same number see the same wait.
        sealed: nobody else can read, change or forge what it carries.
        survives: the others can go on when a rank dies, see `recover`.
        lowest: rank that speaks for those that are left.
        bytes_sent: payload bytes that this rank has sent since it started.
        messages_sent: messages, likewise.
    """

    rank: int
    size: int
    local_rank: int
    nodes: Sequence[int]
    in_process: bool
    takes_gpu_memory: bool = False
    watch: Callable[[], None] | None = None
    waits: int = 0
    sealed: bool = False
    survives: bool = False
    lowest: int = 0
    bytes_sent: int = 0
    messages_sent: int = 0

    @abstractmethod
    def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
        """Starts to send a note."""

    @abstractmethod
    def poll_note(self, source: int, tag: int, limit: int) -> tuple[int, bytes] | None:
        """The next note from `source` (or ANY), with its source; None if none has arrived.

        Raises:
            ProtocolError: the note is longer than `limit` bytes; nothing is allocated.
        """

    @abstractmethod
    def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
        """Starts to send a contiguous uint8 vector out of its own memory."""

    @abstractmethod
    def receive_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        """Starts to receive into a contiguous uint8 vector of the length that was sent."""

    def take_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        """As `receive_buffer`, where only the sender's word says how long the buffer is.

        Asking whether it is done, in the order in which they were sent, raises ProtocolError if
        it is of another length; nothing is written then.
        """
        return self.receive_buffer(buffer, source, tag)

    @abstractmethod
    def drop_buffer(self, source: int, tag: int) -> bool:
        """Throws away one buffer, or a piece of one, if any has arrived; whether one had."""

    def wait(self, ready: Callable[[], T | None], expected: float = 0.0) -> T:
        """Calls `ready` until it returns something other than None, politely.

        Args:
            ready: what is waited for.
            expected: seconds that it will probably take; 0 if nobody knows.

        Raises:
            LostRank: a rank of the job has died, and this transport survives that.
        """
        self.waits += 1
        watch = self.watch
        if watch is None:
            return self._wait(ready, expected)

        def watched() -> T | None:
            watch()
            return ready()

        return self._wait(watched, expected)

    @abstractmethod
    def _wait(self, ready: Callable[[], T | None], expected: float) -> T:
        """How this transport waits."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """Ends every rank of the job at once, whatever it is doing."""

    def recover(self, limit: float, report: Callable[[int], None] = lambda rank: None) -> list[int]:
        """Goes on with the ranks that are left, which all call it: those lost since the last time.

        Ranks keep their numbers. What was on its way is lost.

        Args:
            limit: on rank 0, seconds after which a rank that does not come is ended; on others,
                seconds for which they wait for rank 0.
            report: on rank 0, told of each rank that does not come, before it is ended.

        Raises:
            FedMPIError: they do not come together. This cannot be tried again.
        """
        raise NotImplementedError(f"{type(self).__name__} survives no rank")

    @property
    def broken(self) -> bool:
        """Whether a rank has died since the last `recover`."""
        return False

    def host(self, rank: int) -> str:
        """Name of the node of a rank."""
        return socket.gethostname()

    def kill(self, rank: int) -> bool:
        """Ends the process of another rank at once; whether that could be done from here."""
        return False

    def leave(self, status: int) -> None:  # noqa: B027 - most have nothing to do
        """Called by a process that has done all its work, before it ends with this status."""

    def finish(self, pending: Pending, expected: float = 0.0) -> None:
        """Waits for one transfer; `expected` as for `wait`."""
        self.wait(lambda: pending.done() or None, expected)

    def _count(self, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.messages_sent += 1
