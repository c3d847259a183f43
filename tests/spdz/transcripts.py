"""What every rank sends while a secure computation runs, and whether words look uniform."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.spdz.stream import Stream
from fedmpi.tensors.remote_worker import RemoteWorker


class Sent(NamedTuple):
    """A frame, with copies of its tensors."""

    source: int
    to: int
    channel: Channel
    message: msgspec.Struct
    tensors: list[torch.Tensor]


@contextmanager
def recorded() -> Iterator[list[Sent]]:
    """All frames that ranks which are threads of this process send inside, in order."""
    found: list[Sent] = []
    lock, send = threading.Lock(), Endpoint.send

    def keep(
        self: Endpoint,
        destination: int,
        channel: Channel,
        message: msgspec.Struct,
        tensors: Sequence[torch.Tensor] = (),
        *rest: Any,
        **more: Any,
    ) -> None:
        with lock:
            copies = [tensor.clone() for tensor in tensors]
            found.append(Sent(self.rank, destination, Channel(channel), message, copies))
        send(self, destination, channel, message, tensors, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "send", keep)
        yield found


class Drawn(NamedTuple):
    """Bytes of a stream, by a party or by the dealer."""

    dealer: bool
    key: bytes
    number: int
    start: int
    end: int


@contextmanager
def recorded_draws() -> Iterator[list[Drawn]]:
    """All that is drawn from streams inside, which also have to be made inside."""
    found: list[Drawn] = []
    keys: dict[int, bytes] = {}
    places: dict[int, tuple[int, int]] = {}
    kept: list[Stream] = []
    make, fill = Stream.__init__, Stream.fill
    main = threading.current_thread()

    def init(self: Stream, key: bytes) -> None:
        kept.append(self)  # its id stays its own
        keys[id(self)] = key
        make(self, key)

    def draw(self: Stream, t: int, out: torch.Tensor) -> torch.Tensor:
        before = places.get(id(self), (0, 0))
        start = before[1] if before[0] == t else 0
        places[id(self)] = t, start + out.nbytes
        dealer = threading.current_thread() is main
        if out.nbytes:
            found.append(Drawn(dealer, keys[id(self)], t, start, start + out.nbytes))
        return fill(self, t, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "__init__", init)
        patch.setattr(Stream, "fill", draw)
        yield found


def opened(workers: Sequence[RemoteWorker], program: Callable[[], object]) -> list[int]:
    """Elements of each opening, in order."""
    for worker in workers:
        worker.wait()
    with recorded() as frames:
        program()
        for worker in workers:
            worker.wait()
    return [f.tensors[0].numel() for f in frames if f.channel == Channel.OPENING and f.source == 1]


def surprise(words: torch.Tensor) -> float:
    """How far the bytes of words are from uniform: about 1 if they are, in units of chance.

    The chi-square statistic over 256 values, at each of a word's bytes, divided by its expectation,
    for the worst byte. Beyond 1.6 is one chance in 10^8.
    """
    flat = words.contiguous().view(-1)
    table = flat.view(torch.uint8).view(-1, flat.element_size())
    assert len(table) >= 1280, "too few words for a test"
    expected = len(table) / 256
    worst = 0.0
    for column in table.unbind(1):
        counts = torch.bincount(column.long(), minlength=256).double()
        worst = max(worst, float(((counts - expected) ** 2 / expected).sum()) / 255)
    return worst


def related(messages: Sequence[torch.Tensor]) -> float:
    """As `surprise`, of messages and of the differences of any two of the same length."""
    worst = max(map(surprise, messages))
    for k, one in enumerate(messages):
        for other in messages[:k]:
            if other.shape == one.shape and other.dtype == one.dtype:
                worst = max(worst, surprise(one - other), surprise(one ^ other))
    return worst
