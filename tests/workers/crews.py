"""Commands for tests of the loop: they double, fail, remember and add."""

from __future__ import annotations

import torch

from fedmpi.errors import UsageError
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.worker import Worker


class Value(Reply, frozen=True):
    value: float


class Journal(Reply, frozen=True):
    entries: list[str]


class Double(Command, frozen=True):
    """Asks for twice the value, plus the sum of the tensors."""

    value: float


@handles(Double, replies=True)
def double(worker: Worker, command: Double, tensors: list[torch.Tensor]) -> Value:
    return Value(2 * command.value + sum(float(t.sum()) for t in tensors))


class Enter(Command, frozen=True):
    """Enters a word into the worker's journal; fails on request, as a bug or as a refusal."""

    word: str
    fails: str = ""


def _enter(worker: Worker, command: Enter | EnterAlways, tensors: list[torch.Tensor]) -> None:
    if command.fails == "bug":
        raise ZeroDivisionError(f"at {command.word}")
    if command.fails == "refusal":
        raise UsageError(f"{command.word} is not to be had")
    if command.fails == "memory":
        raise MemoryError(command.word)
    worker.store.setdefault("journal", []).append(command.word)


@handles(Enter)
def enter(worker: Worker, command: Enter, tensors: list[torch.Tensor]) -> None:
    _enter(worker, command, tensors)


class EnterAlways(Command, frozen=True):
    """The same, which also runs after an earlier failure."""

    word: str
    fails: str = ""


@handles(EnterAlways, always=True)
def enter_always(worker: Worker, command: EnterAlways, tensors: list[torch.Tensor]) -> None:
    _enter(worker, command, tensors)


class Read(Command, frozen=True):
    """Asks for the journal, which is then empty; fails on request."""

    fails: bool = False


@handles(Read, replies=True)
def read(worker: Worker, command: Read, tensors: list[torch.Tensor]) -> Journal:
    if command.fails:
        raise ValueError("no reading today")
    return Journal(worker.store.pop("journal", []))


class Need(Command, frozen=True):
    """Asks for a stored object that must be a Tensor."""

    key: str


@handles(Need, replies=True)
def need(worker: Worker, command: Need, tensors: list[torch.Tensor]) -> Value:
    return Value(float(worker.object(command.key, torch.Tensor)))


class Urgent(Command, frozen=True):
    """Fails, and the owner is not to wait for the next reply to hear of it."""

    word: str


@handles(Urgent, urgent=True)
def urgent(worker: Worker, command: Urgent, tensors: list[torch.Tensor]) -> None:
    raise ZeroDivisionError(f"at {command.word}")
