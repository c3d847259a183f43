"""The owner's handle on its workers: tell them, ask them, stop them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.signals import SIGNALS
from fedmpi.errors import FedMPIError, LostRank, RemoteError, UsageError
from fedmpi.workers.command import Command, Failure, Reply, Signalled, Stop, entry_of
from fedmpi.workers.vigil import Vigil

R = TypeVar("R", bound=Reply)

STATUSES = (FedMPIError.exit_status, UsageError.exit_status)
"""With which a worker may end the job: neither as a success nor as a run that goes on later."""
SECONDS_TO_LEAVE = 60.0
"""An idle worker hears within this time that the job is over."""


class Crew:
    """All workers of a job, as the owner sees them.

    Any wait of the owner may raise `RemoteError`, when a worker fails at an urgent command, and
    `LostRank` or `SilentRank`, when one dies or does not answer any more.

    Args:
        endpoint: of rank 0.

    Attributes:
        ranks: of the workers that live, ascending; at first 1 to the number of workers.
        in_process: the workers are threads of this process.
        busy: whether a worker may be at work on something nobody has waited for.
        vigil: what watches them while the owner waits.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ranks: Sequence[int] = range(1, endpoint.size)
        self.in_process = endpoint.transport.in_process
        self.busy = False
        self._apart = False
        self.vigil = Vigil(endpoint)
        endpoint.transport.watch = self._watch

    def tell(self, rank: int, command: Command, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Sends a command and returns; the tensors must not change before the next wait."""
        self.tell_all([rank], command, tensors)

    def tell_all(
        self, ranks: Iterable[int], command: Command, tensors: Sequence[torch.Tensor] = ()
    ) -> None:
        """As `tell`, the same command to many workers: it is encoded once for all of them."""
        self.busy = True
        asks = entry_of(command).replies
        self.endpoint.send_all(ranks, Channel.COMMAND, command, tensors, asks)

    def hear(self, ranks: Iterable[int], kind: type[R]) -> list[R]:
        """Waits for one reply of each rank, in the order of `ranks`.

        Every reply is taken in before an error is raised, so that none is left to be
        mistaken for the answer to a later question.

        Raises:
            RemoteError: the failure of the lowest rank that failed.
        """
        return [reply for reply, _ in self.hear_tensors(ranks, kind)]

    def hear_tensors(
        self, ranks: Iterable[int], kind: type[R]
    ) -> list[tuple[R, list[torch.Tensor]]]:
        """As `hear`, with the tensors that came with each reply."""
        replies: list[tuple[R, list[torch.Tensor]]] = []
        failure: RemoteError | None = None
        for rank in ranks:
            frame = self.endpoint.receive(Channel.REPLY, rank)
            reply: R | Failure = frame.read(kind | Failure)
            if isinstance(reply, Failure):
                failure = failure or _remote_error(rank, reply)
            else:
                replies.append((reply, frame.tensors))
        self.endpoint.flush()
        self.busy = False
        if failure is not None:
            raise failure
        return replies

    def ask(self, command: Callable[[int], Command], kind: type[R]) -> list[R]:
        """Sends `command(rank)` to every worker and waits for all replies, in rank order."""
        for rank in self.ranks:
            self.tell(rank, command(rank))
        return self.hear(self.ranks, kind)

    def stop(self, status: int) -> None:
        """Sends every worker home with an exit status; at once, if some are still at work.

        Raises:
            FedMPIError: some have not heard it; MPI would wait for them for ever.
        """
        if self._apart:
            # The others wait for the owner, who has left the meeting: there is no second one.
            self.endpoint.transport.abort(status)
            return
        if self.endpoint.transport.broken:
            # The living wait for the owner, and then for commands.
            self.recover(LostRank("the job ends"))
        if self.busy:
            self.endpoint.transport.abort(status)
            return
        try:
            for rank in self.ranks:
                self.endpoint.send(rank, Channel.COMMAND, Stop(status))
            self._see_off(set(self.ranks))
        except LostRank as lost:
            # The living have not seen all that was sent: they are told once more.
            self.recover(lost)
            self.stop(status)

    def _see_off(self, left: set[int]) -> None:
        limit = min(self.vigil.limit, SECONDS_TO_LEAVE)
        deadline = time.monotonic() + limit

        def gone() -> bool | None:
            for rank in sorted(left):
                if self.endpoint.poll(Channel.REPLY, rank) is not None:
                    left.remove(rank)
            return not left or time.monotonic() > deadline or None

        self.endpoint.transport.wait(gone)
        if left:
            ranks = ", ".join(map(str, sorted(left)))
            raise FedMPIError(
                f"the job is over, but rank {ranks} has not heard that for {limit:.0f} s: its "
                "message was lost, or it does not run"
            )
        self.endpoint.flush()

    def recover(self, lost: LostRank) -> list[int]:
        """Goes on with the workers that are left, which have given up what they were doing.

        Args:
            lost: what has ended the owner's wait; while it lives, so does the memory in which
                messages could still arrive.

        Returns:
            The ranks that are lost; `ranks` is empty if there were no more.

        Raises:
            FedMPIError: the others did not come together. The job ends at once then, as it does
                if a signal or Ctrl-C breaks in on this.
        """
        self._apart = True
        ranks = self.endpoint.transport.recover(self.vigil.limit, self.vigil.report)
        self.endpoint.forget()
        self.ranks = [rank for rank in self.ranks if rank not in ranks]
        self.vigil.forget(list(self.ranks))
        self.busy = self._apart = False
        return ranks

    def _watch(self) -> None:
        self.vigil.look()
        frame = self.endpoint.poll(Channel.ALARM)
        if frame is None:
            return
        alarm: Failure | Signalled = frame.read(Failure | Signalled)
        if isinstance(alarm, Failure):
            raise _remote_error(frame.source, alarm)
        SIGNALS.told(frame.source, alarm.name)


def _remote_error(rank: int, failure: Failure) -> RemoteError:
    sentence = f"worker on rank {rank}: {failure.sentence}"
    error = RemoteError(sentence, rank, failure.traceback, failure.call, failure.where)
    if failure.exit_status in STATUSES:
        error.exit_status = failure.exit_status
    return error
