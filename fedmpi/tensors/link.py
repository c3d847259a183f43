"""The owner's end of one worker's object store: calls go out in batches, ids come from here."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

import torch

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.workers.command import Command, Reply
from fedmpi.workers.crew import Crew
from fedmpi.workers.operate import Call, Clear, Done, Operate, Wait
from fedmpi.workers.program import Program
from fedmpi.workers.signature import Signature

R = TypeVar("R", bound=Reply)

BATCH = 32
"""Calls that travel in one frame at most."""
PATIENCE = 1e-3
"""Seconds that a call waits for company, if other calls come."""
LINES_KEPT = 2**16
"""Calls of which the owner still knows the script's line when they fail."""

_INSIDE = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(fedmpi.__file__) + os.sep)


class Learnt(Protocol):
    """What a link calls: an operator of known arguments, or a plan.

    Attributes:
        number: under which a worker learns it; operators count up from 0, plans down from -1.
        signature: what the worker learns.
        numbers: how many numbers a call takes, in place of a seed (see `operators.Own`).
    """

    @property
    def number(self) -> int: ...
    @property
    def signature(self) -> Signature | Program: ...
    @property
    def numbers(self) -> int: ...


class HasKeys(Protocol):
    """What gives ids to objects.

    Attributes:
        last_key: the id that was given last.
    """

    @property
    def last_key(self) -> int: ...
    def forget_since(self, key: int) -> None:
        """Deletes what was made after that id, though pointers to it may live on."""


class Remote:
    """One object on a worker; it is deleted there after the last of these has died here."""

    __slots__ = ("key", "link")

    def __init__(self, link: Link, key: int) -> None:
        self.link = link
        self.key = key

    def __del__(self) -> None:
        # No message from here: this may run in the middle of anything.
        self.link.release(self.key)


class Link:
    """What goes from the owner to one worker's object store.

    Args:
        crew: of the job.
        rank: the worker's.

    Attributes:
        dead: ids to forget, sent with the next call or command.
        open: false once the job has ended.
        groups: of workers that compute together, this one among them: what has ids of its own.
        beside: links of workers that this one may have to wait for: a wait for this worker
            sends them what is queued, too.
    """

    def __init__(self, crew: Crew, rank: int) -> None:
        self.crew = crew
        self.rank = rank
        self.dead: list[int] = []
        self.open = True
        self.beside: set[Link] = set()
        self.groups: list[HasKeys] = []
        self._held = False
        self._calls: list[Call] = []
        self._untold: list[Learnt] = []
        self._told: set[int] = set()
        self._since = 0.0
        self._made = 0
        self._last_key = 0
        self._users: dict[int, int] = {}
        self._lines: deque[tuple[str, int]] = deque(maxlen=LINES_KEPT)

    def make(self) -> Remote:
        """A handle with a new id, for an object that is about to be."""
        self._last_key += 1
        self._users[self._last_key] = 1
        return Remote(self, self._last_key)

    def peer(self, link: Link) -> Link:
        """What stands for another worker's link: while a protocol is recorded, not itself."""
        return link

    def adopt(self, key: int) -> Remote:
        """One more handle for an object that the worker has already."""
        self._users[key] = self._users.get(key, 0) + 1
        return Remote(self, key)

    def release(self, key: int) -> None:
        """One handle less; with the last one the object is to be deleted."""
        users = self._users.pop(key) - 1
        if users:
            self._users[key] = users
        else:
            self.dead.append(key)

    def call(
        self,
        known: Learnt,
        tensors: list[int],
        numbers: list[int | float],
        results: list[int],
        seed: int,
    ) -> None:
        """Queues an operator's call; it goes out with others."""
        if not self.open:
            raise self._closed()
        if known.number not in self._told:
            self._told.add(known.number)
            self._untold.append(known)
        self._made += 1
        self._lines.append(_line_of_the_script())
        dead, self.dead = self.dead, []
        self._calls.append(Call(self._made, known.number, tensors, numbers, results, seed, dead))
        if len(self._calls) == 1:
            self._since = time.perf_counter()
        elif self._held:
            pass
        elif len(self._calls) >= BATCH or time.perf_counter() - self._since > PATIENCE:
            self.flush()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Calls made inside wait for its end; if it ends with an error, they are never sent."""
        before = len(self._calls)
        self._held = True
        try:
            yield
        except BaseException:
            # Less, if something inside had to be sent at once, with all that was before it.
            for call in self._calls[before:]:
                self.dead += call.dead
            del self._calls[before:]
            raise
        finally:
            self._held = False

    def learn(self, known: Learnt) -> None:
        """Has the worker learn something before its first call."""
        if known.number not in self._told:
            self._told.add(known.number)
            self.tell(Operate([(known.number, known.signature)], [], []))

    @property
    def idle(self) -> bool:
        """Whether no call is queued."""
        return not self._calls

    def flush_all(self) -> None:
        """Sends what is queued for this worker and for those beside it."""
        for link in (self, *self.beside):
            link.flush()

    def flush(self) -> None:
        """Sends what is queued."""
        if self._calls or self.dead:
            signatures: list[tuple[int, Signature | Program]] = [
                (known.number, known.signature) for known in self._untold
            ]
            # What dies from here on goes with the next command.
            calls, self._calls, self._untold = self._calls, [], []
            dead, self.dead = self.dead, []
            self.crew.tell(self.rank, Operate(signatures, calls, dead))

    def tell(self, command: Command, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Sends a command after all that is queued."""
        if not self.open:
            raise self._closed()
        self.flush()
        self.crew.tell(self.rank, command, tensors)

    def ask(self, command: Command, kind: type[R]) -> tuple[R, list[torch.Tensor]]:
        """Sends a command and waits for its reply; raises as `hear`."""
        self.tell(command)
        return self.hear(kind)

    def hear(self, kind: type[R]) -> tuple[R, list[torch.Tensor]]:
        """Waits for the reply to the oldest command that owes one.

        Raises:
            RemoteError: the first failure since the last wait, with the script's line.
        """
        self.flush_all()
        try:
            [answer] = self.crew.hear_tensors([self.rank], kind)
        except RemoteError as error:
            raise self._at_its_line(error) from None
        return answer

    def forget_since(self, key: int) -> None:
        """Deletes what was made after that id, though pointers to it may live on."""
        self.dead += range(key + 1, self._last_key + 1)

    @property
    def last_key(self) -> int:
        """The id that was given last."""
        return self._last_key

    def wait(self) -> None:
        """Waits until the worker has done all; raises as `ask`."""
        self.ask(Wait(), Done)

    def forget_signatures(self) -> None:
        """The numbers of operators are given anew from here on; those of plans are not."""
        self.flush()
        self._told = {number for number in self._told if number < 0}

    def clear(self) -> None:
        """Deletes all objects, and waits; raises as `ask`."""
        self.ask(Clear(), Done)

    def _closed(self) -> UsageError:
        return UsageError(f"a pointer to rank {self.rank} belongs to a job that has ended")

    def _at_its_line(self, error: RemoteError) -> RemoteError:
        """The same error with the line of the script that made the call."""
        back = self._made - error.call
        if not error.call or back >= len(self._lines):
            return error
        file, number = self._lines[-1 - back]
        told = RemoteError(
            f"{error} (called at {file}:{number})", error.rank, error.remote_traceback, error.call
        )
        told.exit_status = error.exit_status
        return told


def _line_of_the_script() -> tuple[str, int]:
    """The innermost line that is neither PyTorch's nor FedMPI's."""
    frame = sys._getframe(2)
    while _is_inside(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


@cache
def _is_inside(file: str) -> bool:
    return file.startswith(_INSIDE)
