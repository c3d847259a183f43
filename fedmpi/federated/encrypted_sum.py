"""A sum of encrypted vectors, block by block: what each rank that takes part in it does.

Workers encrypt, one rank adds, one decrypts, the owner gets the sum. All of them go through the
blocks in step, so that no rank's memory grows with the length; a block is decrypted while the
next one is added. Additive homomorphic aggregation as in Aono, Hayashi, Wang, Moriai 2018,
"Privacy-preserving deep learning via additively homomorphic encryption", with CKKS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.frame import UNREADABLE, ProtocolError
from fedmpi.decoding import from_msgpack
from fedmpi.federated.ckks import Key, joined, serialised, smudged
from fedmpi.federated.ckks_parameters import Parameters
from fedmpi.federated.fixed_point import RESOLUTION, real
from fedmpi.workers.worker import OWNER

BLOCK = 8
"""Ciphertexts of a frame: 1 MiB with polynomials of degree 8192."""


class Sent(msgspec.Struct, frozen=True):
    """From rank to rank, beside the tensors: what they are, of which round and which block."""

    what: Literal["public key", "piece of the key", "ciphertexts", "sum", "values"]
    round: int = 0
    block: int = 0


class Plan(msgspec.Struct, frozen=True):
    """Who does what in a round.

    Attributes:
        round: its number.
        length: values of the vectors.
        givers: ranks of the workers whose vectors are added, ascending.
        adder: rank that adds.
        holders: ranks with the secret key, or a piece of it each; the first one decrypts.
    """

    round: int
    length: int
    givers: list[int]
    adder: int
    holders: list[int]


@dataclass
class Keys:
    """What a rank has of the job's key pair.

    Attributes:
        public: encrypts and adds.
        secret: decrypts; with the only key holder.
        piece: of the secret key, serialised; with each of several key holders.
    """

    public: Key
    secret: Key | None = None
    piece: torch.Tensor | None = None


def take(endpoint: Endpoint, source: int, expected: Sent, count: int) -> list[torch.Tensor]:
    """Waits for tensors from a rank.

    Raises:
        ProtocolError: it sent something else, of another round or block, or not `count` tensors.
    """
    frame = endpoint.receive(Channel.PEER, source)
    try:
        sent = from_msgpack(frame.message, Sent)
    except UNREADABLE as error:
        raise ProtocolError(f"rank {source} did not send its {expected.what}: {error}") from None
    if sent != expected or len(frame.tensors) != count:
        raise ProtocolError(
            f"rank {source} sent {_words(sent, len(frame.tensors))} instead of "
            f"{_words(expected, count)}"
        )
    return frame.tensors


def _words(sent: Sent, count: int) -> str:
    return f"{sent.what} ({count}) of round {sent.round}, block {sent.block}"


class Part:
    """A rank's part in the encrypted sum of a round.

    Args:
        endpoint: of this rank.
        plan: of the round, the same on all ranks.
        keys: of this rank.
        own: exact sum of a giver, int64 [length] on the CPU, as `ExactSum` has it.

    Raises:
        UsageError: a value with which the sum might not fit; nothing has been encrypted.
    """

    def __init__(
        self, endpoint: Endpoint, plan: Plan, keys: Keys, own: torch.Tensor | None = None
    ) -> None:
        self.endpoint = endpoint
        self.rank = endpoint.rank
        self.plan = plan
        self.keys = keys
        self.own = own
        if own is not None:
            low, high = (float(end) for end in torch.aminmax(own))
            largest = max(-low, high) * 2.0**-RESOLUTION
            self._parameters.require_fitting(largest, len(plan.givers))

    @property
    def _parameters(self) -> Parameters:
        return self.keys.public.parameters

    def play(self) -> torch.Tensor | None:
        """Takes part; the owner gets the sum, float64 [length].

        Raises:
            ProtocolError: what another rank sent is of no use.
        """
        secret = self._secret_key()
        total = torch.empty(self.plan.length, dtype=torch.float64) if self.rank == OWNER else None
        step = BLOCK * self._parameters.slots
        blocks = [
            slice(first, min(first + step, self.plan.length))
            for first in range(0, self.plan.length, step)
        ]
        # A rank sends block k + 1 before it waits for the sum of block k: nobody waits in a circle.
        for ahead in range(len(blocks) + 1):
            if ahead < len(blocks):
                self._add(ahead, blocks[ahead])
            if ahead:
                self._open(ahead - 1, blocks[ahead - 1], secret, total)
        self.endpoint.flush()
        return total

    def _secret_key(self) -> Key | None:
        """The key, at the rank that decrypts: put together of the pieces, for this round only."""
        first, *others = self.plan.holders
        if not others:
            return self.keys.secret if self.rank == first else None
        piece = self.keys.piece
        sent = Sent("piece of the key", self.plan.round)
        if self.rank in others:
            assert piece is not None, "a key holder has a piece"
            self.endpoint.send(first, Channel.PEER, sent, [piece])
        if self.rank != first:
            return None
        assert piece is not None, "a key holder has a piece"
        pieces = [piece]
        for rank in others:
            [theirs] = take(self.endpoint, rank, sent, 1)
            if theirs.dtype != piece.dtype or theirs.shape != piece.shape:
                raise ProtocolError(
                    f"rank {rank} sent {theirs.dtype} {list(theirs.shape)} as its piece of the "
                    f"key, which has {piece.numel()} bytes"
                )
            pieces.append(theirs)
        whole = joined(pieces)
        try:
            return Key(self._parameters, whole, first, secret=True)
        except ProtocolError as error:
            ranks = ", ".join(map(str, self.plan.holders))
            raise ProtocolError(
                f"the pieces of the key from ranks {ranks} make no key: {error}"
            ) from None
        finally:
            for used in (whole, *pieces[1:]):
                used.zero_()

    def _add(self, block: int, places: slice) -> None:
        """Encrypts this rank's block, if it gives one; adds up all ranks', if it is the adder."""
        plan, slots = self.plan, self._parameters.slots
        sent, to, ciphertexts = Sent("ciphertexts", plan.round, block), plan.adder, None
        if self.own is not None:
            pieces = real(self.own[places]).split(slots)
            ciphertexts = [self.keys.public.encrypt(piece) for piece in pieces]
        if self.rank == plan.adder:
            ciphertexts = self._sum_of_block(sent, _sizes(places, slots), ciphertexts)
            sent, to = Sent("sum", plan.round, block), plan.holders[0]
        if ciphertexts is not None:
            data = [serialised(ciphertext) for ciphertext in ciphertexts]
            self.endpoint.flush()  # one block is on its way, not all of them
            self.endpoint.send(to, Channel.PEER, sent, data)

    def _sum_of_block(self, sent: Sent, sizes: list[int], mine: list[Any] | None) -> list[Any]:
        total = mine
        for rank in self.plan.givers:
            if rank == self.rank:
                continue
            data = take(self.endpoint, rank, sent, len(sizes))
            theirs = [
                self.keys.public.read(one, size, rank)
                for one, size in zip(data, sizes, strict=True)
            ]
            if total is None:
                total = theirs
            else:
                for one, other in zip(total, theirs, strict=True):
                    one.add_(other)
        assert total is not None, "a round has givers"
        return total

    def _open(
        self, block: int, places: slice, secret: Key | None, total: torch.Tensor | None
    ) -> None:
        """Decrypts the sum of a block for the owner, or takes it in."""
        sent, first = Sent("values", self.plan.round, block), self.plan.holders[0]
        if secret is not None:
            sizes = _sizes(places, self._parameters.slots)
            what, adder = Sent("sum", self.plan.round, block), self.plan.adder
            data = take(self.endpoint, adder, what, len(sizes))
            ciphertexts = [
                secret.read(one, size, adder) for one, size in zip(data, sizes, strict=True)
            ]
            values = torch.cat([secret.decrypt(ciphertext) for ciphertext in ciphertexts])
            noise = self._parameters.noise_bound(len(self.plan.givers))
            values = smudged(values, noise)
            self.endpoint.flush()
            self.endpoint.send(OWNER, Channel.PEER, sent, [values])
        if total is not None:
            [values] = take(self.endpoint, first, sent, 1)
            if values.dtype != torch.float64 or values.shape != total[places].shape:
                raise ProtocolError(
                    f"rank {first} sent {values.dtype} {list(values.shape)} as "
                    f"{places.stop - places.start} values of the sum"
                )
            total[places] = values


def _sizes(places: slice, slots: int) -> list[int]:
    """Values in each ciphertext of a block."""
    return [min(slots, places.stop - first) for first in range(places.start, places.stop, slots)]
