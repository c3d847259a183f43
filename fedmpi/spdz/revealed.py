"""What the parties reveal: to the owner, or to one worker; the sum of their shares and no more.

The owner is the dealer, who knows all masks: the shares themselves would tell it what they were
computed from. So every party adds what it draws from a key that it has in common with the next
party, and subtracts what it draws from the one that it has in common with the previous.
"""

from __future__ import annotations

import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import UNREADABLE, ProtocolError
from fedmpi.decoding import from_msgpack
from fedmpi.spdz.member import Party, member
from fedmpi.workers.command import Answer, Command, handles
from fedmpi.workers.objects import NoSuchObject, Refused
from fedmpi.workers.operate import Fetched, Given
from fedmpi.workers.worker import Worker


class Reveal(Command, frozen=True):
    """Send the owner a share, blinded.

    Attributes:
        share: id of the shares.
        group: of the parties.
        number: of the call, on all of them.
    """

    share: int
    group: int
    number: int


class RevealTo(Command, frozen=True):
    """Send a worker a share, blinded; the same to all parties.

    Attributes:
        share, group, number: as of `Reveal`.
        to: rank of the worker.
    """

    share: int
    group: int
    number: int
    to: int


class TakeSum(Command, frozen=True):
    """Store the sum of what the parties send.

    Attributes:
        key: of the sum.
        parties: ranks; a party that takes the sum has told itself its share.
    """

    key: int
    parties: list[int]


def _blinded(worker: Worker, command: Reveal | RevealTo) -> torch.Tensor:
    me = member(command.group)
    if not isinstance(me, Party):
        raise ProtocolError(f"rank {worker.rank} is no party of group {command.group}")
    return me.blinded(worker.objects.tensor(command.share), command.number)


@handles(Reveal, replies=True)
def reveal(worker: Worker, command: Reveal, tensors: list[torch.Tensor]) -> Answer:
    """Refuses what is private."""
    if worker.objects.is_private(command.share):
        raise Refused(
            f"rank {worker.rank} keeps object {command.share} private: it does not leave the worker"
        )
    return Answer(Fetched(), [_blinded(worker, command)])


@handles(RevealTo, always=True)
def reveal_to(worker: Worker, command: RevealTo, tensors: list[torch.Tensor]) -> None:
    """Refuses in words: the other worker waits. What is private stays so there."""
    try:
        share = _blinded(worker, command)
        told = Given([], "", worker.objects.is_private(command.share))
    except Exception as error:
        refused = Given([], "", False, refusal=str(error))
        worker.endpoint.send(command.to, Channel.PEER, refused)
        raise
    worker.endpoint.send(command.to, Channel.PEER, told, [share])


@handles(TakeSum, always=True)
def take_sum(worker: Worker, command: TakeSum, tensors: list[torch.Tensor]) -> None:
    """Waits for all parties, whatever one of them says."""
    shares, private, refusal = [], False, ""
    for rank in command.parties:
        frame = worker.endpoint.receive(Channel.PEER, rank)
        try:
            given = from_msgpack(frame.message, Given)
        except UNREADABLE as error:
            raise ProtocolError(f"rank {rank} sent no share: {error}") from None
        refusal = refusal or given.refusal
        private = private or given.private
        shares += frame.tensors
    if refusal:
        worker.objects.lose([command.key], refusal)
        raise NoSuchObject(worker.rank, command.key, refusal)
    try:
        worker.objects.put(command.key, torch.stack(shares).sum(0), private=private)
    except Refused as error:
        worker.objects.lose([command.key], str(error))
        raise
