"""One rank's end of the wire: sends and receives whole frames over any transport."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, get_args

import msgspec
import numpy as np
import torch

from fedmpi.comm.frame import (
    DTYPES,
    HEADER_LIMIT,
    INLINE_BYTES,
    UNREADABLE,
    Header,
    ProtocolError,
    Unreadable,
    as_bytes,
    decode,
    encode,
    numbered,
    reason,
    take_number,
)
from fedmpi.comm.transport import ANY, Pending, Transport
from fedmpi.decoding import msgpack_decoder

HUGE_BYTES = 4 * 2**20
"""From here on memory in huge pages is worth asking for."""
ALIGNMENT = 64
"""In bytes, as PyTorch aligns its tensors: kernels may round differently otherwise."""


class Channel(IntEnum):
    """Who may say what to whom. Each channel has two tags: headers, and their buffers."""

    COMMAND = 2
    REPLY = 4
    COLLECTIVE = 6
    ALARM = 8
    PEER = 10
    OPENING = 12
    DEALING = 14
    BEAT = 16


class Frame(msgspec.Struct, frozen=True):
    """A frame that has arrived.

    Attributes:
        source: rank of the sender.
        message: still encoded; the room that knows the types decodes it.
        tensors: on the CPU, contiguous, in memory of their own.
        asks: the sender waits for an answer.
    """

    source: int
    message: msgspec.Raw
    tensors: list[torch.Tensor]
    asks: bool = False

    def read(self, kind: Any) -> Any:
        """The message as the type that it must be, a union among them.

        Raises:
            ProtocolError: it is another, or a field is of a wrong type or value.
        """
        try:
            return msgpack_decoder(kind).decode(self.message)
        except UNREADABLE as error:
            name = " or ".join(one.__name__ for one in get_args(kind) or (kind,))
            raise ProtocolError(f"rank {self.source} sent no {name}: {reason(error)}") from None


class Endpoint:
    """Frames in and out of one rank.

    The frames of a channel from one rank to another are counted on both ends, so that one which
    was lost, came twice or overtook another is noticed at the next one that arrives.

    A header that cannot be read does not say which buffers are its own. From there on the
    sender's buffers on that channel are thrown away as they come, whosever they are, and its
    frames are taken without.

    Args:
        transport: what carries them; its rank and size are this endpoint's.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size
        self._outbox: deque[tuple[Pending, object]] = deque()
        self._astray: set[tuple[int, Channel]] = set()
        self._unasked: dict[tuple[int, Channel], Callable[[Frame], bool]] = {}
        self._early: dict[tuple[int, Channel], deque[Frame]] = {}
        self._sent: Counter[tuple[int, Channel]] = Counter()
        self._received: Counter[tuple[int, Channel]] = Counter()

    def send(
        self,
        destination: int,
        channel: Channel,
        message: msgspec.Struct,
        tensors: Sequence[torch.Tensor] = (),
        asks: bool = False,
    ) -> None:
        """Starts to send a frame and returns; the tensors must not change before `flush`."""
        self.send_all([destination], channel, message, tensors, asks)

    def send_all(
        self,
        destinations: Iterable[int],
        channel: Channel,
        message: msgspec.Struct,
        tensors: Sequence[torch.Tensor] = (),
        asks: bool = False,
    ) -> None:
        """As `send`, the same frame to many: it is encoded once."""
        note, buffers = encode(message, tensors, asks)
        for to in destinations:
            self._post(note, buffers, to, channel)
            self._reap()

    def receive(self, channel: Channel, source: int = ANY) -> Frame:
        """Waits for the next frame on a channel.

        Raises:
            Unreadable: what arrived is not a frame, or its buffers are not those announced.
            ProtocolError: a header beyond `HEADER_LIMIT`, which was not even received; or not
                the frame that was due.
        """
        self._unasked.pop((source, channel), None)
        if early := self._early.get((source, channel)):
            return early.popleft()
        sender, note = self.transport.wait(lambda: self._poll(channel, source))
        return self._frame(sender, note, channel)

    def poll(self, channel: Channel, source: int = ANY) -> Frame | None:
        """The next frame on a channel, if one has arrived; raises as `receive`."""
        arrived = self.transport.poll_note(source, channel, HEADER_LIMIT)
        return None if arrived is None else self._frame(*arrived, channel)

    def take_in(self, source: int, channel: Channel, wanted: Callable[[Frame], bool]) -> None:
        """Takes frames in as they come, during any wait, until somebody receives from there.

        For who has given up asking: the sender could not get its memory back otherwise, and would
        wait for that at its next `flush`.

        Args:
            source: of the frames.
            channel: of the frames.
            wanted: whether a frame is kept for a later `receive`.
        """
        self._unasked[source, channel] = wanted

    def let_leave(self, transfers: Iterable[Pending]) -> None:
        """Takes care of what was sent without a frame, as of all that it sends itself."""
        self._outbox.extend((transfer, None) for transfer in transfers)

    def flush(self) -> None:
        """Waits until everything sent has left its memory."""
        self.transport.wait(lambda: self._turn() or None)

    def attend(self) -> None:
        """Does what is done while waiting, once: for who works on while messages are under way."""
        self.transport.wait(lambda: self._turn() or True)

    def forget(self) -> None:
        """Begins anew when what was on its way is lost, see `Transport.recover`."""
        self._outbox.clear()
        self._astray.clear()
        self._unasked.clear()
        self._early.clear()
        self._sent.clear()
        self._received.clear()

    def _post(
        self, note: bytes, buffers: Sequence[torch.Tensor], to: int, channel: Channel
    ) -> None:
        self._sent[to, channel] += 1
        note = numbered(note, self._sent[to, channel])
        self._outbox.append((self.transport.send_note(note, to, channel), note))
        for buffer in buffers:
            self._outbox.append((self.transport.send_buffer(buffer, to, channel + 1), buffer))

    def _frame(self, sender: int, note: bytes, channel: Channel) -> Frame:
        self._received[sender, channel] += 1
        due = self._received[sender, channel]
        number, note = take_number(note)
        if number != due:
            raise ProtocolError(
                f"rank {self.rank} got frame {number} of rank {sender} on channel "
                f"{channel.name.lower()}, where frame {due} was due: one was lost, came twice or "
                "was overtaken on its way"
            )
        try:
            header = decode(note)
        except ProtocolError as error:
            self._astray.add((sender, channel))
            raise Unreadable(str(error)) from None
        tensors = self._receive_tensors(header, sender, channel)
        return Frame(sender, header.message, tensors, header.asks)

    def _turn(self) -> bool:
        """What is done while waiting; true when all that was sent has left its memory."""
        for (source, channel), wanted in self._unasked.items():
            while (frame := self.poll(channel, source)) is not None:
                if wanted(frame):
                    self._early.setdefault((source, channel), deque()).append(frame)
        return self._reap()

    def _poll(self, channel: Channel, source: int) -> tuple[int, bytes] | None:
        self._turn()
        for sender, where in self._astray:
            # Unreceived, they would keep the sender from ever seeing its memory again.
            while self.transport.drop_buffer(sender, where + 1):
                pass
        return self.transport.poll_note(source, channel, HEADER_LIMIT)

    def _reap(self) -> bool:
        """Forgets the transfers that have ended, up to one that has not; true when none is left.

        To ask all of them every time would make n messages in flight cost n^2.
        """
        while self._outbox and self._outbox[0][0].done():
            self._outbox.popleft()
        return not self._outbox

    def _receive_tensors(self, header: Header, source: int, channel: Channel) -> list[torch.Tensor]:
        if (source, channel) in self._astray and not all(t.inline for t in header.tensors):
            raise Unreadable(
                f"rank {self.rank} takes no tensor of more than {INLINE_BYTES} bytes from rank "
                f"{source} any more, since a frame that it could not read left open whose bytes "
                "are whose: start the job again",
                header.asks,
            )
        tensors, pending, offset = [], [], 0
        for meta in header.tensors:
            tensor = _empty(meta.shape, DTYPES[meta.dtype])
            raw = as_bytes(tensor)
            if meta.inline:
                if raw.numel():
                    part = bytearray(header.inline[offset : offset + raw.numel()])
                    raw.copy_(torch.frombuffer(part, dtype=torch.uint8))
                    offset += raw.numel()
            else:
                pending.append(self.transport.take_buffer(raw, source, channel + 1))
            tensors.append(tensor)
        refusal = None
        for transfer in pending:
            try:
                self.transport.finish(transfer)
            except ProtocolError as error:
                refusal = refusal or error
        if refusal is not None:
            self._astray.add((source, channel))
            raise Unreadable(str(refusal), header.asks)
        return tensors


def _empty(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a tensor; long ones in huge pages where the system has them.

    NumPy asks for those and PyTorch does not: 100 MB then arrive five times as fast, since
    no time goes into 25,000 page faults.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < HUGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    raw = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + nbytes]).view(dtype).view(shape)
