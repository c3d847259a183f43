"""A worker's own data becomes shares without anybody else seeing it.

The worker sends every party but one the key of a fresh stream, from which that party draws its
share, and the one party the rest: itself, if it is among them. What was drawn never depends on
the streams that the dealer knows, so that the dealer learns nothing either.
"""

from __future__ import annotations

import msgspec
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import UNREADABLE, ProtocolError
from fedmpi.decoding import from_msgpack
from fedmpi.spdz.fixed_point import encode
from fedmpi.spdz.stream import Stream, new_key
from fedmpi.workers.command import Command, handles
from fedmpi.workers.objects import NoSuchObject, Refused
from fedmpi.workers.worker import Worker

_FIRST = 1
"""Number of the one draw of a key that is used once."""


class Split(Command, frozen=True):
    """Share an object among parties.

    Attributes:
        key: of the object.
        parties: ranks.
        share: id of the shares, on all parties.
        bits: fractional bits.
        again: the object is a share already, which becomes a secret of the parties' own.
    """

    key: int
    parties: list[int]
    share: int
    bits: int
    again: bool = False


class TakeShare(Command, frozen=True):
    """Store the share that a worker gives of its object."""

    share: int
    source: int


class Part(msgspec.Struct, frozen=True):
    """From worker to party: the key of a share, or nothing and the share itself.

    Attributes:
        key: of the stream; empty if the share is in this frame.
        shape: of the share.
        private: whether the owner may not have it.
        refusal: why there is none.
    """

    key: bytes
    shape: list[int]
    private: bool
    refusal: str = ""


@handles(Split, always=True)
def split(worker: Worker, command: Split, tensors: list[torch.Tensor]) -> None:
    """Refuses in words: the parties wait for their parts."""
    objects, others = worker.objects, [rank for rank in command.parties if rank != worker.rank]
    private = False
    try:
        values = objects.tensor(command.key)
        private = objects.is_private(command.key)
        if objects.is_shared(command.key) != command.again:
            is_one = "no share" if command.again else "a share already"
            raise Refused(f"object {command.key} of rank {worker.rank} is {is_one}")
        rest = (values if command.again else encode(values, command.bits)).contiguous()
    except Exception as error:
        why = error.why if isinstance(error, NoSuchObject) else str(error)
        if private:
            # The sentence would tell the largest and the smallest value.
            why = f"private values on rank {worker.rank} cannot be shared: NaN, or too large"
            error = Refused(why)
        for rank in others:
            worker.endpoint.send(rank, Channel.PEER, Part(b"", [], False, refusal=why))
        objects.lose([command.share], why)
        raise error from None
    shape = list(rest.shape)
    takes_rest = worker.rank if worker.rank in command.parties else others.pop()
    for rank in others:
        key = new_key()
        rest = rest - Stream(key).uniform(_FIRST, shape)
        worker.endpoint.send(rank, Channel.PEER, Part(key, shape, private))
    if takes_rest == worker.rank:
        objects.put(command.share, rest, private=private, shared=True)
    else:
        worker.endpoint.send(takes_rest, Channel.PEER, Part(b"", shape, private), [rest])


@handles(TakeShare, always=True)
def take_share(worker: Worker, command: TakeShare, tensors: list[torch.Tensor]) -> None:
    """Waits for the worker whose data it is."""
    frame = worker.endpoint.receive(Channel.PEER, command.source)
    try:
        part = from_msgpack(frame.message, Part)
    except UNREADABLE as error:
        raise ProtocolError(f"rank {command.source} sent no share: {error}") from None
    if part.refusal:
        worker.objects.lose([command.share], part.refusal)
        raise NoSuchObject(worker.rank, command.share, part.refusal)
    try:
        if part.key:
            worker.objects.make_room(8 * torch.Size(part.shape).numel())
            share = Stream(part.key).uniform(_FIRST, part.shape)
        else:
            [share] = frame.tensors
        worker.objects.put(command.share, share, private=part.private, shared=True)
    except Exception as error:
        worker.objects.lose([command.share], str(error))
        raise
