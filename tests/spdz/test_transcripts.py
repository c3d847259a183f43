"""What n-1 parties see does not depend on the secrets: it is uniform, and no two words are related.

An operator is run on many elements of the same values at once, which are as many runs. The honest
party is each one in turn; the others know their own shares and all that is sent to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import fedmpi
from fedmpi.comm.endpoint import Channel
from fedmpi.spdz.sharing import share
from fedmpi.spdz.stream import Stream
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.transcripts import Sent, recorded, related

RUNS = 64 * 200
UNIFORM = 1.6

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]


def written(x: Tensor, y: Tensor) -> Tensor:
    """A secret that is masked, written, and masked again."""
    squared = x * x
    x += 1
    return squared + x * y


OPERATORS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mul": lambda x, y: x * y,
    "square": lambda x, y: x * x,
    "matmul": lambda x, y: x.view(-1, 2, 2) @ y.view(-1, 2, 2),
    "truncate": lambda x, y: x * 0.3,
    "sign": lambda x, y: x > 0,
    "relu": lambda x, y: torch.relu(x * y),
    "choose": lambda x, y: torch.where(x > y, x, y),
    "max": lambda x, y: x.view(-1, 2).max(1).values,
    "written": written,
}


@pytest.fixture(scope="module", params=[2, 3, 5])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with fedmpi.simulate(request.param) as found:
        yield found


def transcript(workers: Workers, name: str, values: tuple[float, float]) -> list[Sent]:
    x, y = (share(torch.full((RUNS,), value), *workers) for value in values)
    for worker in workers:
        worker.wait()
    with recorded() as frames:
        OPERATORS[name](x, y)
        for worker in workers:
            worker.wait()
    return frames


def seen(frames: Sequence[Sent], honest: int) -> list[Tensor]:
    """What the others get of one party, each thing once, and the last party of the dealer."""
    found: list[Tensor] = []
    first = min(f.to for f in frames if f.source == honest and f.channel == Channel.OPENING)
    for frame in frames:
        if frame.source == honest and frame.channel == Channel.OPENING and frame.to == first:
            found += frame.tensors
        if frame.channel == Channel.DEALING and frame.to != honest:
            found += frame.tensors
    return [tensor.view(-1) for tensor in found]


@pytest.mark.parametrize("values", [(0.0, 0.0), (-20000.0, 1.5)], ids=["zeros", "large"])
@pytest.mark.parametrize("name", OPERATORS)
def test_what_the_others_see_is_uniform(
    workers: Workers, name: str, values: tuple[float, float]
) -> None:
    frames = transcript(workers, name, values)
    for honest in sorted({1, len(workers)}):
        messages = [m for m in seen(frames, honest) if m.numel() >= 1280]
        assert messages
        assert related(messages) < UNIFORM, f"what party {honest} sends says something"


def test_the_dealer_gets_no_opening_and_sends_to_the_last_party_alone(workers: Workers) -> None:
    for name in OPERATORS:
        for frame in transcript(workers, name, (2.5, -1.0)):
            if frame.to == 0:
                assert frame.channel == Channel.REPLY
                assert not frame.tensors
            if frame.channel in (Channel.OPENING, Channel.PEER):
                assert 0 not in (frame.source, frame.to)
            if frame.channel == Channel.DEALING:
                assert (frame.source, frame.to) == (0, len(workers))
            if frame.source == 0 and frame.channel == Channel.COMMAND:
                assert not frame.tensors, "the owner sent values"


def test_numbers_rise(workers: Workers) -> None:
    last: dict[tuple[int, int, Channel], int] = {}
    for name in OPERATORS:
        for frame in transcript(workers, name, (2.5, -1.0)):
            if frame.channel in (Channel.OPENING, Channel.DEALING):
                way, number = frame[:3], frame.message.number  # type: ignore[attr-defined]
                assert number >= last.get(way, 0)
                last[way] = number
    assert last


def test_a_mask_that_comes_twice_is_found_out(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test can fail: with streams that begin anew, two openings have the same mask."""
    fill = Stream.fill

    def again(self: Stream, t: int, out: Tensor) -> Tensor:
        self._t = 0
        return fill(self, 1, out)

    monkeypatch.setattr(Stream, "fill", again)
    messages = [m for m in seen(transcript(workers, "mul", (2.5, 4.0)), 1) if m.numel() >= 1280]
    assert related(messages) > UNIFORM


def test_a_secret_without_a_mask_is_found_out(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "fill", lambda self, t, out: out.zero_())
    assert related(seen(transcript(workers, "mul", (2.5, 4.0)), 1)) > UNIFORM
