"""The in-process transport: ranks are threads, a message is a hand-over in memory.

It behaves as MPI does where it matters: a buffer is copied once, from the sender's
memory into the receiver's, when the receiver asks for it; until then the send is
pending. What would hang or mix up messages under MPI does so here too, where a debugger
can see it.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import TypeVar

import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.transport import ANY, Pending, Transport
from fedmpi.errors import FedMPIError

T = TypeVar("T")


class Aborted(FedMPIError):
    """Another rank has ended the job."""


class _Transfer:
    """One buffer on its way; both ends look at the same `finished`."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.finished = False

    def done(self) -> bool:
        return self.finished


class _Receive(_Transfer):
    """The receiving end: asking whether it is done is what moves the bytes."""

    def __init__(self, buffer: torch.Tensor, match: Callable[[], None]) -> None:
        super().__init__(buffer)
        self._match = match
        self.refusal: ProtocolError | None = None

    def done(self) -> bool:
        if not self.finished:
            self._match()
        if self.refusal is not None:
            raise self.refusal
        return self.finished


class _Sent:
    """A note is immutable: handing it over ends the send."""

    def done(self) -> bool:
        return True


class _Mailbox:
    """What has arrived for one rank, and the bell that wakes it."""

    def __init__(self) -> None:
        self.bell = threading.Condition()
        self.rings = 0
        self.notes: dict[int, deque[tuple[int, bytes]]] = defaultdict(deque)
        self.buffers: dict[tuple[int, int], deque[_Transfer]] = defaultdict(deque)

    def ring(self) -> None:
        with self.bell:
            self.rings += 1
            self.bell.notify_all()


class Hub:
    """The mailboxes of all ranks of one job; `transport(rank)` is a rank's way in.

    Args:
        size: number of ranks, the owner included.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.mailboxes = [_Mailbox() for _ in range(size)]
        self.aborted: int | None = None

    def transport(self, rank: int) -> ThreadTransport:
        """The transport of one rank."""
        return ThreadTransport(self, rank)

    def abort(self, status: int) -> None:
        """Wakes every waiting rank with `Aborted`."""
        self.aborted = status
        for mailbox in self.mailboxes:
            mailbox.ring()


class ThreadTransport(Transport):
    """See `Transport`. Used by one thread only."""

    in_process = True

    def __init__(self, hub: Hub, rank: int) -> None:
        self.hub = hub
        self.rank = self.local_rank = rank
        self.size = hub.size
        self.nodes = [0] * hub.size
        self._mailbox = hub.mailboxes[rank]
        self._receives: dict[tuple[int, int], deque[_Receive]] = defaultdict(deque)

    def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
        mailbox = self.hub.mailboxes[destination]
        with mailbox.bell:
            mailbox.notes[tag].append((self.rank, note))
        mailbox.ring()
        self._count(len(note))
        return _Sent()

    def poll_note(self, source: int, tag: int, limit: int) -> tuple[int, bytes] | None:
        with self._mailbox.bell:
            notes = self._mailbox.notes[tag]
            index = next((i for i, (s, _) in enumerate(notes) if source in (ANY, s)), None)
            if index is None:
                return None
            sender, note = notes[index]
            del notes[index]
        if len(note) > limit:
            raise ProtocolError(f"rank {sender} sent a header of {len(note)} bytes")
        return sender, note

    def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
        transfer = _Transfer(buffer)
        mailbox = self.hub.mailboxes[destination]
        with mailbox.bell:
            mailbox.buffers[self.rank, tag].append(transfer)
        mailbox.ring()
        self._count(buffer.numel())
        return transfer

    def receive_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        wanted = _Receive(buffer, lambda: self._match(source, tag))
        self._receives[source, tag].append(wanted)
        return wanted

    def drop_buffer(self, source: int, tag: int) -> bool:
        with self._mailbox.bell:
            sends = self._mailbox.buffers[source, tag]
            if not sends:
                return False
            sends.popleft().finished = True
        self.hub.mailboxes[source].ring()
        return True

    def _match(self, source: int, tag: int) -> None:
        """Pairs sends and receives of one (source, tag) in their order."""
        receives = self._receives[source, tag]
        while receives:
            with self._mailbox.bell:
                sends = self._mailbox.buffers[source, tag]
                if not sends:
                    return
                sent = sends.popleft()
            target = receives.popleft()
            if sent.buffer.numel() == target.buffer.numel():
                target.buffer.copy_(sent.buffer)
            else:
                target.refusal = ProtocolError(
                    f"rank {source} sent {sent.buffer.numel()} bytes, "
                    f"rank {self.rank} expected {target.buffer.numel()}"
                )
            target.finished = sent.finished = True
            self.hub.mailboxes[source].ring()

    def _wait(self, ready: Callable[[], T | None], expected: float) -> T:
        while True:
            rings = self._mailbox.rings
            if self.hub.aborted is not None:
                raise Aborted("the job was ended by another rank")
            result = ready()
            if result is not None:
                return result
            with self._mailbox.bell:
                # A time limit, so that Ctrl-C is seen on every platform, and silence.
                if self._mailbox.rings == rings:
                    self._mailbox.bell.wait(0.5)

    def abort(self, status: int) -> None:
        self.hub.abort(status)
