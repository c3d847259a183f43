"""A transport whose messages nobody can read, change, repeat, reorder or leave out unnoticed.

For fabrics that are shared with others. Every message is sealed by AES-256-GCM (NIST SP 800-38D)
under a key of its direction between two ranks; its number on the way from the one to the other on
a tag is part of the nonce, so that a message that comes twice, late or not at all fails as one
that was changed does. The keys of a job are derived from a secret that all its ranks have (see
`fedmpi.workers.seal`).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.transport import Pending, Transport

T = TypeVar("T")

TAG_BYTES = 16
SEGMENT = 2**30
"""Most bytes under one nonce; GCM itself allows 64 GiB, the library 2 GiB."""
_NONCE = struct.Struct("<HHQ")
"""Tag of the message, segment, number: 12 bytes."""


class SealedTransport(Transport):
    """See `Transport`; what it carries lies in host memory.

    Args:
        inner: carries the sealed messages. It must not be used for others meanwhile.
        key: 32 bytes that all ranks of this job have and no other job had.
    """

    takes_gpu_memory = False
    sealed = True

    def __init__(self, inner: Transport, key: bytes) -> None:
        self._inner = inner
        self.rank, self.size, self.local_rank = inner.rank, inner.size, inner.local_rank
        self.nodes, self.in_process = inner.nodes, inner.in_process
        self.survives, self.lowest = inner.survives, inner.lowest
        self.watch = inner.watch
        self.bytes_sent, self.messages_sent = inner.bytes_sent, inner.messages_sent
        self._key = key
        self._recoveries = 0
        self._ciphers: dict[tuple[int, int], AESGCM] = {}
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()

    def send_note(self, note: bytes, destination: int, tag: int) -> Pending:
        number = self._next(self._sent, destination, tag)
        cipher = self._cipher(self.rank, destination)
        sealed = cipher.encrypt(_NONCE.pack(tag, 0, number), note, None)
        return self._counted(self._inner.send_note(sealed, destination, tag))

    def poll_note(self, source: int, tag: int, limit: int) -> tuple[int, bytes] | None:
        arrived = self._inner.poll_note(source, tag, limit + TAG_BYTES)
        if arrived is None:
            return None
        sender, sealed = arrived
        number = self._next(self._received, sender, tag)
        cipher = self._cipher(sender, self.rank)
        try:
            return sender, cipher.decrypt(_NONCE.pack(tag, 0, number), sealed, None)
        except InvalidTag:
            raise self._broken(sender, tag, number) from None

    def send_buffer(self, buffer: torch.Tensor, destination: int, tag: int) -> Pending:
        number = self._next(self._sent, destination, tag)
        cipher = self._cipher(self.rank, destination)
        sealed = torch.empty(_sealed_length(buffer.numel()), dtype=torch.uint8)
        for k, (plain, closed) in enumerate(_segments(buffer, sealed)):
            cipher.encrypt_into(_NONCE.pack(tag, k, number), plain, None, closed)
        return self._counted(self._inner.send_buffer(sealed, destination, tag))

    def receive_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        # Into posted memory Open MPI writes whatever comes, and a message may have been withheld.
        return self.take_buffer(buffer, source, tag)

    def take_buffer(self, buffer: torch.Tensor, source: int, tag: int) -> Pending:
        number = self._next(self._received, source, tag)
        sealed = torch.empty(_sealed_length(buffer.numel()), dtype=torch.uint8)
        arriving = self._inner.take_buffer(sealed, source, tag)
        cipher = self._cipher(source, self.rank)

        def open_it() -> None:
            try:
                for k, (plain, closed) in enumerate(_segments(buffer, sealed)):
                    cipher.decrypt_into(_NONCE.pack(tag, k, number), closed, None, plain)
            except InvalidTag:
                raise self._broken(source, tag, number) from None

        return _Opening(arriving, open_it)

    def drop_buffer(self, source: int, tag: int) -> bool:
        dropped = self._inner.drop_buffer(source, tag)
        self._received[source, tag] += dropped
        return dropped

    def _wait(self, ready: Callable[[], T | None], expected: float) -> T:
        return self._inner._wait(ready, expected)

    def recover(self, limit: float, report: Callable[[int], None] = lambda rank: None) -> list[int]:
        lost = self._inner.recover(limit, report)
        self.lowest = self._inner.lowest
        # What was on its way is lost, so that numbers begin anew: under other keys.
        self._recoveries += 1
        self._ciphers.clear()
        self._sent.clear()
        self._received.clear()
        return lost

    def host(self, rank: int) -> str:
        return self._inner.host(rank)

    def kill(self, rank: int) -> bool:
        return self._inner.kill(rank)

    def abort(self, status: int) -> None:
        self._inner.abort(status)

    @staticmethod
    def _next(numbers: Counter[tuple[int, int]], peer: int, tag: int) -> int:
        numbers[peer, tag] += 1
        return numbers[peer, tag]

    def _cipher(self, source: int, destination: int) -> AESGCM:
        direction = source, destination
        if direction not in self._ciphers:
            info = b"fedmpi %d to %d, %d" % (*direction, self._recoveries)
            self._ciphers[direction] = AESGCM(HKDF(SHA256(), 32, None, info).derive(self._key))
        return self._ciphers[direction]

    def _counted(self, pending: Pending) -> Pending:
        self.bytes_sent, self.messages_sent = self._inner.bytes_sent, self._inner.messages_sent
        return pending

    def _broken(self, source: int, tag: int, number: int) -> ProtocolError:
        return ProtocolError(
            f"message {number} of rank {source} to rank {self.rank} on tag {tag} is not what was "
            "sent: somebody changed, repeated, delayed or withheld it, or has another key"
        )


class _Opening:
    """A sealed buffer on its way, opened when it is there."""

    def __init__(self, arriving: Pending, open_it: Callable[[], None]) -> None:
        self._arriving = arriving
        self._open: Callable[[], None] | None = open_it

    def done(self) -> bool:
        if self._open is not None:
            if not self._arriving.done():
                return False
            opening, self._open = self._open, None
            opening()
        return True


def _sealed_length(length: int) -> int:
    """Of a buffer; an empty one is sealed too, so that it cannot be left out."""
    return length + TAG_BYTES * max(1, math.ceil(length / SEGMENT))


def _segments(plain: torch.Tensor, sealed: torch.Tensor) -> list[tuple[Any, Any]]:
    """The memory of each segment of a uint8 vector, open and sealed."""
    starts = range(0, max(1, plain.numel()), SEGMENT)
    return [
        (
            plain[start : start + SEGMENT].numpy(),
            sealed[start + k * TAG_BYTES :][: SEGMENT + TAG_BYTES].numpy(),
        )
        for k, start in enumerate(starts)
    ]
