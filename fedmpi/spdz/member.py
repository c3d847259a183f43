"""Who takes part in a secure computation: the parties, which are workers, and the dealer.

All of them make the same calls in the same order. What an operator of `fedmpi::` does
depends on who makes it: a party computes with its shares and exchanges masked values with
the other parties; the dealer, on rank 0, knows the masks and nothing else, and sends the
last party what its share of correlated randomness has to be: the correction. No party ever
asks for anything.

A call is known by its number, which is the same for all. Who cannot make a call says so to those
who may wait for it. So whoever waits for a call's frame from another member gets it, or hears that
there will be none; whatever comes before is left over from calls that failed, and is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
import torch

from fedmpi.comm.endpoint import Channel, Endpoint, Frame
from fedmpi.comm.frame import UNREADABLE, ProtocolError
from fedmpi.comm.kept_memory import keep_memory
from fedmpi.comm.time_slice import ask_for_short_turns
from fedmpi.decoding import from_msgpack, msgpack_decoder
from fedmpi.errors import FedMPIError
from fedmpi.spdz.stream import Stream, new_key
from fedmpi.workers.command import Command, handles
from fedmpi.workers.operate import abandoned
from fedmpi.workers.worker import OWNER, Worker

FIRST_OFFLINE = 2**62
"""Numbers from here on are of calls that were dealt for beforehand."""
DIRECT = 3
"""Up to so many parties each sends its share to all others; more add up at the first."""


class Broken(FedMPIError):
    """Another member has given up on this call."""


class Opening(msgspec.Struct, frozen=True, tag=True):
    """From party to party, or from the dealer: the tensors of this frame belong to that call."""

    number: int


class GivenUp(msgspec.Struct, frozen=True, tag=True):
    """From member to member: calls from a first number on will not be made."""

    number: int
    numbers: int
    why: str


class Join(Command, frozen=True):
    """Take part in secure computations.

    Attributes:
        group: number of the group of parties.
        ranks: of the parties, in order.
        key: 16 bytes, known to this party and the dealer: what this party draws follows it.
    """

    group: int
    ranks: list[int]
    key: bytes


class UseMaterial(Command, frozen=True):
    """Draw with another key in calls that were dealt for beforehand."""

    group: int
    key: bytes


class Blind(msgspec.Struct, frozen=True, tag=True):
    """From a party to the next one: what a share that is revealed is hidden by follows this key."""

    key: bytes


class Leave(Command, frozen=True):
    """Take no more part in the secure computations of a group."""

    group: int


class Count(msgspec.Struct):
    """What a member has done in all calls of one operator.

    Attributes:
        calls: how many.
        openings: values that it opened together with the others.
        nbytes: that it sent to other members.
    """

    calls: int = 0
    openings: int = 0
    nbytes: int = 0


class Member:
    """What parties and dealer have in common.

    Attributes:
        endpoint: this rank's end of the wire.
        ranks: of the parties, in order.
        counts: of what was sent, by operator.
    """

    def __init__(self, endpoint: Endpoint, ranks: Sequence[int]) -> None:
        self.endpoint = endpoint
        self.ranks = tuple(ranks)
        self.counts: dict[str, Count] = {}

    def count(self, operator: str) -> Count:
        """Where one more call of an operator is counted."""
        found = self.counts.get(operator)
        if found is None:
            found = self.counts[operator] = Count()
        found.calls += 1
        return found

    def send(self, rank: int, channel: Channel, number: int, tensors: list[torch.Tensor]) -> None:
        """Sends what belongs to a call; the tensors must not change afterwards."""
        self.endpoint.send(rank, channel, Opening(number), tensors)

    def give_up(self, number: int, numbers: int, why: str) -> None:
        """Tells those who may wait for this member that it will not make these calls."""
        raise NotImplementedError


class Party(Member):
    """A worker while it takes part.

    Args:
        endpoint: this rank's end of the wire.
        ranks: of the parties, in order.
        key: of this party's stream.

    Attributes:
        first, last: whether it is that one among the parties.
        next, previous: the ranks beside it, in a circle.
    """

    def __init__(self, endpoint: Endpoint, ranks: Sequence[int], key: bytes) -> None:
        super().__init__(endpoint, ranks)
        self.others = [rank for rank in ranks if rank != endpoint.rank]
        self.first = endpoint.rank == ranks[0]
        self.last = endpoint.rank == ranks[-1]
        self.stream = Stream(key)
        self.offline = Stream(key)
        self.offline_streams: dict[bytes, Stream] = {}
        place = self.ranks.index(endpoint.rank)
        self.next = self.ranks[(place + 1) % len(ranks)]
        self.previous = self.ranks[place - 1]
        self._added = self._taken = Stream(key)

    def agree_on_blinds(self) -> None:
        """Gives the next party a key, and gets one from the previous; the dealer knows none."""
        key = new_key()
        self.endpoint.send(self.next, Channel.PEER, Blind(key))
        frame = self.endpoint.receive(Channel.PEER, self.previous)
        try:
            theirs = from_msgpack(frame.message, Blind).key
        except UNREADABLE as error:
            raise ProtocolError(f"rank {self.previous} sent no key: {error}") from None
        self._added, self._taken = Stream(key), Stream(theirs)

    def blinded(self, share: torch.Tensor, number: int) -> torch.Tensor:
        """A share that may leave: the sum of all parties' is right, and nothing else is told.

        The dealer knows what the shares were made with. From a product's shares as they are it
        would find the factors.
        """
        blind = self._added.uniform(number, share.shape)
        blind -= self._taken.uniform(number, share.shape)
        return blind.add_(share)

    def stream_of(self, number: int) -> Stream:
        """Where this party's part in a call is drawn from."""
        return self.offline if number >= FIRST_OFFLINE else self.stream

    def give_up(self, number: int, numbers: int, why: str) -> None:
        """Tells the other parties, and asks for nothing that they may have sent for these calls."""

        def wanted(frame: Frame) -> bool:
            # Calls dealt for beforehand have numbers in no order.
            return not number <= _decode(frame).number < number + numbers

        for rank in self.others:
            self.endpoint.send(rank, Channel.OPENING, GivenUp(number, numbers, why))
            self.endpoint.take_in(rank, Channel.OPENING, wanted)
        if self.last:
            self.endpoint.take_in(OWNER, Channel.DEALING, wanted)

    def receive(self, rank: int, channel: Channel, number: int) -> list[torch.Tensor]:
        """The tensors that another member sends for a call.

        Raises:
            Broken: it has given up on that call.
        """
        while True:
            frame = self.endpoint.receive(channel, rank)
            message = _decode(frame)
            if isinstance(message, Opening):
                if message.number == number:
                    return frame.tensors
            elif message.number <= number < message.number + message.numbers:
                raise Broken(f"rank {rank} has given up on a secure computation: {message.why}")


class Dealer(Member):
    """Rank 0: knows the streams of all parties.

    Args:
        endpoint: of rank 0.
        ranks: of the parties, in order.
        keys: of their streams.

    Attributes:
        input: the value that the owner is about to share.
        bytes_ahead: sent since somebody last waited for it to leave.
    """

    def __init__(self, endpoint: Endpoint, ranks: Sequence[int], keys: Sequence[bytes]) -> None:
        super().__init__(endpoint, ranks)
        self.streams = [Stream(key) for key in keys]
        self.input: torch.Tensor | None = None
        self.bytes_ahead = 0

    def give_up(self, number: int, numbers: int, why: str) -> None:
        """Tells the last party, which is the only one that hears from the dealer."""
        given_up = GivenUp(number, numbers, why)
        self.endpoint.send(self.ranks[-1], Channel.DEALING, given_up)


_here = threading.local()


def members() -> dict[int, Party | Dealer]:
    """What this rank (this thread, where ranks are threads) is, in each group."""
    if not hasattr(_here, "members"):
        _here.members = {}
    found: dict[int, Party | Dealer] = _here.members
    return found


def member(group: int) -> Party | Dealer:
    """What this rank is in a group.

    Raises:
        ProtocolError: nothing.
    """
    found = members().get(group)
    if found is None:
        raise ProtocolError(f"this rank is not in group {group} of parties")
    return found


@handles(Join, always=True)
def join(worker: Worker, command: Join, tensors: list[torch.Tensor]) -> None:
    """From here on this worker is one of the parties."""
    # The operators that the parties will call: other jobs do not wait for them at their start.
    import fedmpi.spdz.table.everything  # noqa: F401

    if worker.rank not in command.ranks or OWNER in command.ranks or len(command.ranks) < 2:
        raise ProtocolError(f"rank {worker.rank} cannot join parties {command.ranks}")
    party = Party(worker.endpoint, command.ranks, command.key)
    party.agree_on_blinds()
    members()[command.group] = party
    ask_for_short_turns()
    keep_memory()


@handles(UseMaterial, always=True)
def use_material(worker: Worker, command: UseMaterial, tensors: list[torch.Tensor]) -> None:
    """From here on."""
    me = member(command.group)
    if not isinstance(me, Party):
        raise ProtocolError(f"rank {worker.rank} is no party of group {command.group}")
    # A key that was here before goes on where it was: no run is drawn for twice.
    me.offline = me.offline_streams.setdefault(command.key, Stream(command.key))


@handles(Leave, always=True)
def leave(worker: Worker, command: Leave, tensors: list[torch.Tensor]) -> None:
    """Forgets the keys."""
    members().pop(command.group, None)


def _give_up(number: int, numbers: int, why: str) -> None:
    """A call that has failed here: the others must not wait for this rank."""
    for one in members().values():
        one.give_up(number, numbers, why)


abandoned.append(_give_up)


_decoder = msgpack_decoder(Opening | GivenUp)


def _decode(frame: Frame) -> Opening | GivenUp:
    try:
        message: Opening | GivenUp = _decoder.decode(frame.message)
    except UNREADABLE as error:
        raise ProtocolError(f"rank {frame.source} sent no opening: {error}") from None
    return message
