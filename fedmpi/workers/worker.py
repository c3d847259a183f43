"""The worker: waits for commands and obeys them, in order, until it is told to stop."""

from __future__ import annotations

import socket
import traceback
from typing import Any, TypeVar

import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.frame import MEMORY, ProtocolError, Unreadable
from fedmpi.comm.rank_log import LOG
from fedmpi.comm.signals import SIGNALS
from fedmpi.comm.threads import Aborted
from fedmpi.errors import FedMPIError, LostRank, UsageError
from fedmpi.workers.command import (
    Answer,
    Command,
    Failure,
    Reply,
    Signalled,
    Stop,
    Stopped,
    decode_command,
    entry_of,
)
from fedmpi.workers.heartbeat import OWNER_LIMIT, Heartbeat, owner_is_lost
from fedmpi.workers.objects import ObjectStore

OWNER = 0
"""Rank of the owner."""

T = TypeVar("T")


class Worker:
    """What a handler sees of the worker that it runs on.

    Args:
        endpoint: this rank's end of the wire.
        seals: nothing is obeyed before messages are sealed, but what seals them.

    Attributes:
        endpoint: this rank's end of the wire.
        rank: 1 or more.
        transport: what carries the frames, for messages without a header.
        store: what the handlers keep, by name.
        objects: the tensors that pointers stand for.
        heartbeat: its sign of life; who works for long calls `heartbeat.between` now and then.
    """

    def __init__(self, endpoint: Endpoint, seals: bool = False) -> None:
        self.endpoint = endpoint
        self._seals = seals
        self.rank = endpoint.rank
        self.transport = endpoint.transport
        self.store: dict[str, Any] = {}
        self.objects = ObjectStore(self.rank, MEMORY)
        self.heartbeat = Heartbeat(endpoint)
        self._failure: Failure | None = None
        self._signalled = False
        self.transport.watch = self._watch

    def object(self, key: str, kind: type[T]) -> T:
        """The stored object of that id, which must be of that kind."""
        found = self.store.get(key)
        if not isinstance(found, kind):
            raise FedMPIError(f"rank {self.rank} holds no {kind.__name__} {key!r}")
        return found

    def _watch(self) -> None:
        """Called while it waits."""
        self.heartbeat.in_wait()
        if not self.transport.in_process:  # a thread is sent no signals
            self.tell_of_signal()

    def tell_of_signal(self) -> None:
        """Tells the owner, once, if this process was asked to leave."""
        if SIGNALS.name and not self._signalled:
            self._signalled = True
            self.endpoint.send(OWNER, Channel.ALARM, Signalled(SIGNALS.name))

    def serve(self) -> int:
        """Obeys until `Stop`; returns its exit status.

        Raises:
            LostRank: the owner has died.
        """
        while True:
            try:
                command, tensors = self._receive()
                if isinstance(command, Stop):
                    self.endpoint.send(OWNER, Channel.REPLY, Stopped())
                    self.endpoint.flush()
                    return command.status
                if command is not None:
                    self._obey(command, tensors)
            except LostRank as lost:
                # Until all are here messages may still arrive in memory that `lost` keeps alive.
                self._recover(lost)

    def _recover(self, lost: LostRank) -> None:
        """Forgets what was under way, and is ready for commands of the owner, if it lives."""
        LOG.warning("%s; %s is given up", lost, self.heartbeat.command or "waiting")
        self.heartbeat.command = ""
        self.heartbeat.disarm()
        ranks = self.transport.recover(OWNER_LIMIT)
        self.endpoint.forget()
        self._failure = None
        LOG.warning("going on without rank %s", ", ".join(map(str, ranks)))
        if OWNER in ranks:
            raise owner_is_lost(self.rank, self.transport.lowest)

    def _receive(self) -> tuple[Command | None, list[torch.Tensor]]:
        """The next command; None for a frame that cannot be read, which is noted as a failure."""
        try:
            frame = self.endpoint.receive(Channel.COMMAND, OWNER)
        except Unreadable as error:
            self._refuse(error, error.asks)
            return None, []
        try:
            return decode_command(frame.message), frame.tensors
        except ProtocolError as error:
            self._refuse(error, frame.asks)
            return None, []

    def _refuse(self, error: ProtocolError, asks: bool) -> None:
        self.note_failure(error)
        if asks:
            self._answer(None)

    def _obey(self, command: Command, tensors: list[torch.Tensor]) -> None:
        entry = entry_of(command)
        if self._seals and not (entry.unsealed or self.transport.sealed):
            raise FedMPIError(
                f"rank {self.rank} was started with --secure-transport and got "
                f"{type(command).__name__} before messages were sealed: somebody else speaks to "
                "it, or rank 0 was started without that option"
            )
        reply: Reply | Answer | None = None
        if self._failure is None or entry.always:
            self.heartbeat.command = type(command).__name__
            try:
                reply = entry.handler(self, command, tensors)
            except (Aborted, LostRank):
                raise
            except (Exception, SystemExit) as error:  # a person's model may call sys.exit
                self.note_failure(error)
                if entry.urgent and self._failure is not None:
                    self.endpoint.send(OWNER, Channel.ALARM, self._failure)
            self.heartbeat.command = ""
        if entry.replies:
            self._answer(reply)

    def _answer(self, reply: Reply | Answer | None) -> None:
        """Sends the failure since the last answer, or the reply if there is none."""
        answer = self._failure or reply
        self._failure = None
        assert answer is not None, "the handler of a command owes a reply"
        if isinstance(answer, Answer):
            self.endpoint.send(OWNER, Channel.REPLY, *answer)
            self.endpoint.flush()  # the next command may change the tensors
        else:
            self.endpoint.send(OWNER, Channel.REPLY, answer)

    def note_failure(self, error: BaseException, call: int = 0) -> None:
        """Keeps the first failure until the owner waits for something.

        Args:
            error: what was raised.
            call: number of the operator's call that raised it, if one did.
        """
        failure = describe_failure(error, call)
        LOG.error("%s", "\n".join(filter(None, (failure.sentence, failure.traceback))))
        self._failure = self._failure or failure


def describe_failure(error: BaseException, call: int = 0) -> Failure:
    """An exception as it travels: a refusal needs no traceback, a bug does.

    Where it happened is this host, and what the exception's notes say.
    """
    where = ", ".join([socket.gethostname(), *getattr(error, "__notes__", [])])
    if isinstance(error, FedMPIError):
        return Failure(str(error), error.exit_status, "", call, where)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Failure(f"out of memory: {error}", UsageError.exit_status, "", call, where)
    sentence = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return Failure(sentence, FedMPIError.exit_status, trace, call, where)
