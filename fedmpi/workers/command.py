"""The one table of commands: what the owner may ask of a worker, and who does it.

A command is a msgspec Struct; its fields are checked against their types on arrival. A
room that has something for workers to do defines a command and a handler for it:

    class Double(Command, frozen=True):
        value: int

    @handles(Double)
    def double(worker: Worker, command: Double, tensors: list[Tensor]) -> Doubled: ...

A handler that returns a `Reply` answers the owner; one that returns None says nothing.
What it raises comes to the owner as a `Failure`: at once in place of the reply, or in
place of the next reply when it owes none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union

import msgspec
import torch

from fedmpi.comm.frame import UNREADABLE, ProtocolError, reason
from fedmpi.comm.signals import CAUGHT
from fedmpi.decoding import msgpack_decoder
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.worker import Worker


class Command(msgspec.Struct, frozen=True, tag=True):
    """Base of all commands."""


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Base of all replies."""


class Stop(Command, frozen=True):
    """Leave the loop; the process ends with this exit status."""

    status: int = 0


class Stopped(Reply, frozen=True):
    """The worker has heard that it is to leave."""


class Failure(Reply, frozen=True):
    """What went wrong on a worker.

    Attributes:
        sentence: for a person.
        exit_status: of the job, if nobody catches it.
        traceback: empty when the sentence says it all (a refusal).
        call: number of the operator's call that failed; 0 if it was something else.
        where: the host, and what the worker was busy with.
    """

    sentence: str
    exit_status: int
    traceback: str
    call: int = 0
    where: str = ""


class Signalled(Reply, frozen=True):
    """This worker was sent a signal that asks the job to leave; see `comm.signals`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in {signal.name for signal in CAUGHT}:
            raise ValueError(f"{self.name!r:.20} asks no job to leave")


class Answer(NamedTuple):
    """A reply with tensors in its frame; they leave before the next command is obeyed."""

    reply: Reply
    tensors: Sequence[torch.Tensor]


C = TypeVar("C", bound=Command)
Handler = Callable[["Worker", Any, list[torch.Tensor]], Reply | Answer | None]


class Entry(NamedTuple):
    """How a command is obeyed; see `handles`."""

    handler: Handler
    replies: bool
    always: bool
    urgent: bool
    unsealed: bool


_handlers: dict[type[Command], Entry] = {}


def handles(
    command: type[C],
    *,
    replies: bool = False,
    always: bool = False,
    urgent: bool = False,
    unsealed: bool = False,
) -> Callable[[Callable[[Worker, C, list[torch.Tensor]], Reply | Answer | None]], Handler]:
    """Enters a handler for a command into the table.

    Args:
        command: its type; the type's name is its name on the wire.
        replies: the owner waits for an answer, so a failure is one too.
        always: run it even after an earlier failure: others wait for its messages.
        urgent: a failure ends the job: the owner hears of it at once, whatever it waits for.
        unsealed: a worker that seals its messages obeys it before they are sealed.
    """

    def enter(handler: Handler) -> Handler:
        _handlers[command] = Entry(handler, replies, always, urgent, unsealed)
        _decoder.cache_clear()
        return handler

    return enter


def entry_of(command: Command) -> Entry:
    """How a command is obeyed."""
    return _handlers[type(command)]


@cache
def _decoder() -> msgspec.msgpack.Decoder[Any]:
    return msgpack_decoder(Union[Stop, *_handlers])


def decode_command(message: msgspec.Raw) -> Command:
    """A command of the table, with every field of its declared type.

    Raises:
        ProtocolError: a name that is not in the table, or a field of a wrong type or value.
    """
    try:
        command: Command = _decoder().decode(message)
    except (*UNREADABLE, UsageError) as error:
        raise ProtocolError(f"a frame without a known command: {reason(error)}") from None
    return command
