"""The transport of a replay: the owner is real, its workers are played without threads.

What the owner sends is put aside at no cost, and looked at when the owner waits: so the time that
its workers are played in can be told from its own. A round of 4,000 workers then needs one
process, and the owner's code cannot tell the difference.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import ProtocolError, numbered, take_number
from fedmpi.comm.transport import ANY, Pending, Transport
from fedmpi.errors import FedMPIError

T = TypeVar("T")

Answered = tuple[int, bytes, Sequence[torch.Tensor]]
"""The rank that answers, the header of its frame, and the buffers that follow it."""


class Played(ABC):
    """The workers of a replay."""

    @abstractmethod
    def obey(self, rank: int, header: bytes) -> Answered | None:
        """What a worker answers to a command, if anything."""

    @abstractmethod
    def give(self, rank: int, buffer: torch.Tensor) -> None:
        """Fills a piece of a collective, uint8, with what that child of the owner sends next."""


class _Done:
    """Nobody is on the other end whom a transfer would have to wait for."""

    def done(self) -> bool:
        return True


class ReplayTransport(Transport):
    """Rank 0 of a job whose other ranks are played; see `Transport`.

    Args:
        workers: what plays them.
        size: ranks, the owner included.

    Attributes:
        played_seconds: that the workers were played for; no time of the owner's.
    """

    in_process = False

    def __init__(self, workers: Played, size: int) -> None:
        self.workers = workers
        self.rank = self.local_rank = 0
        self.size = size
        self.nodes = [0] * size
        self.played_seconds = 0.0
        self._commands: deque[tuple[int, bytes]] = deque()
        self._replies: dict[int, deque[bytes]] = defaultdict(deque)
        self._replied: Counter[int] = Counter()
        self._buffers: dict[int, deque[torch.Tensor]] = defaultdict(deque)

    def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
        self._count(len(note))
        if tag == Channel.COMMAND:
            self._commands.append((destination, take_number(note)[1]))
        return _Done()

    def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
        self._count(buffer.numel())
        return _Done()

    def poll_note(self, source: int, tag: int, limit: int) -> tuple[int, bytes] | None:
        if tag != Channel.REPLY or source == ANY:
            return None
        self._play()
        if not self._replies[source]:
            return None
        note = self._replies[source].popleft()
        if len(note) > limit:
            raise ProtocolError(f"rank {source} sent a header of {len(note)} bytes")
        return source, note

    def receive_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        self._play()
        with self._playing():
            if tag == Channel.COLLECTIVE:
                self.workers.give(source, buffer)
            else:
                buffer.copy_(self._buffers[source].popleft())
        return _Done()

    def drop_buffer(self, source: int, tag: int) -> bool:
        return False

    def _wait(self, ready: Callable[[], T | None], expected: float) -> T:
        result = ready()
        if result is None:
            raise FedMPIError("the owner of the replay waits for what no played worker sends")
        return result

    def abort(self, status: int) -> None:
        """Nobody else is there."""

    def _play(self) -> None:
        if not self._commands:
            return
        with self._playing():
            while self._commands:
                answer = self.workers.obey(*self._commands.popleft())
                if answer is not None:
                    rank, header, buffers = answer
                    self._replied[rank] += 1
                    self._replies[rank].append(numbered(header, self._replied[rank]))
                    self._buffers[rank].extend(buffers)

    @contextmanager
    def _playing(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.played_seconds += time.perf_counter() - begun
