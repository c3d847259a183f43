"""What the owner receives under secure aggregation does not depend on a single client's update.

Everything is recorded: each frame to rank 0, and over a star each worker's vector. The owner then
takes away every mask that it can: what is left of a worker's vector must still be uniform, and only
the sum of all of them may say something. One client a worker, so that a vector is a client's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.threads import ThreadTransport
from fedmpi.config import AggregationConfig, CommConfig, Config, Recipe
from fedmpi.federated import masked, masker, shamir
from fedmpi.federated.commands import Ready, Reported
from fedmpi.federated.fixed_point import RESOLUTION
from fedmpi.federated.masker import Masker
from fedmpi.federated.masking import Unmasked
from fedmpi.federated.masks import Mask, add_masks
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import Turn, Update
from fedmpi.workers.command import Stopped
from tests.federated.lab import bits, config_of, play_alone
from tests.spdz.transcripts import Sent, recorded, related, surprise

CLIENTS = 7
TARGET = 3
UNIFORM = 1.6

Words = dict[tuple[int, int], torch.Tensor]


@dataclass
class Seen:
    """What the owner receives in one round, and what it makes of it.

    Attributes:
        vectors: by (attempt, rank) the words that a worker sent.
        masks: by client, those that the owner takes away, of the attempt that was opened.
        frames: all frames to rank 0.
    """

    rank: dict[int, int] = field(default_factory=dict)
    vectors: Words = field(default_factory=dict)
    masks: dict[int, list[Mask]] = field(default_factory=dict)
    frames: list[Sent] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    repeated: int = 0
    model: dict[str, bytes] = field(default_factory=dict)

    def bare(self) -> dict[int, torch.Tensor]:
        """By remaining client, its worker's words without all masks that the owner can remove."""
        words = {}
        for client, masks in self.masks.items():
            words[client] = self.vectors[self.repeated, self.rank[client]].clone()
            add_masks(words[client], masks)
        return words


def config_for(folder: Path, dropout: float) -> Config:
    return config_of(
        folder,
        CLIENTS,
        Recipe(source="digits", clients=CLIENTS),
        comm=CommConfig(topology="star", chunk_kib=64),
        secure=AggregationConfig(kind="shares"),
        rounds=1,
        fraction=1.0,
        epochs=1,
        dropout=dropout,
    )


@contextmanager
def moved(client: int, by: float) -> Iterator[None]:
    """The client's update is another: each of its values is so much larger."""
    finish = Trainer.finish

    def other(self: Trainer, turn: Turn, weight: float) -> Update:
        update = finish(self, turn, weight)
        if turn.client == client:
            update.local[0].add_(by)
        return update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "finish", other)
        yield


@contextmanager
def known_secrets(fresh: int) -> Iterator[None]:
    """All workers draw the same secrets as in any other such block, but for one rank's."""
    new_key, below = masker.new_key, shamir.secrets.randbelow
    drawn: dict[str, int] = {}

    def word(size: int) -> int | None:
        name = threading.current_thread().name
        if name == f"fedmpi-rank-{fresh}":
            return None
        drawn[name] = drawn.get(name, 0) + 1
        generator = torch.Generator().manual_seed(hash((int(name.split("-")[-1]), drawn[name])))
        chosen = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        return int.from_bytes(bytes(chosen.tolist()), "big")

    def key() -> bytes:
        chosen = word(16)
        return new_key() if chosen is None else chosen.to_bytes(16, "big")

    def randbelow(bound: int) -> int:
        chosen = word(24)
        return below(bound) if chosen is None else chosen % bound

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masker, "new_key", key)
        patch.setattr(shamir.secrets, "randbelow", randbelow)
        yield


def watch(config: Config) -> Seen:
    """Plays the round and records what reaches rank 0."""
    seen = Seen()
    pieces: dict[int, list[torch.Tensor]] = {}
    send, open_all = ThreadTransport.send_buffer, masked.uncancelled
    lock = threading.Lock()

    def keep(self: ThreadTransport, buffer: torch.Tensor, destination: int, tag: int) -> Any:
        if destination == 0 and tag == Channel.COLLECTIVE:
            with lock:
                pieces.setdefault(self.rank, []).append(buffer.clone())
        return send(self, buffer, destination, tag)

    def opened(*given: Any) -> dict[int, list[Mask]]:
        seen.masks = open_all(*given)
        return seen.masks

    with pytest.MonkeyPatch.context() as patch, recorded() as frames:
        patch.setattr(ThreadTransport, "send_buffer", keep)
        patch.setattr(masked, "uncancelled", opened)
        played = play_alone(config, CLIENTS)
    [m] = played.rounds
    home = played.job._rounds.home
    seen.rank, seen.dropped, seen.repeated = home.rank, m.dropped, m.repeated
    seen.frames = [frame for frame in frames if frame.to == 0]
    seen.model = bits(played.model)
    length = sum(t.numel() for t in played.model.state_dict().values())
    for rank, sent in pieces.items():
        words = torch.cat(sent).view(torch.int64)
        for attempt, vector in enumerate(words.split(length)):
            seen.vectors[attempt, rank] = vector
    return seen


def secretive(found: Sequence[torch.Tensor]) -> bool:
    """Whether words, and any two against each other, look uniform."""
    return related(found) < UNIFORM


DROPOUTS = {"nobody": 0.0, "some": 0.5, "too many": 0.55}


@pytest.fixture(scope="module", params=DROPOUTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """The same round with two different updates of one client, whose secrets are new each time."""
    folder = tmp_path_factory.getbasetemp() / "transcripts"
    config = config_for(folder, DROPOUTS[request.param])
    fresh = watch(config).rank[TARGET]
    found = []
    for by in (0.0, 0.25):
        with moved(TARGET, by), known_secrets(fresh):
            found.append(watch(config))
    assert TARGET not in found[0].dropped
    assert bool(found[0].dropped) == (request.param != "nobody")
    assert found[0].repeated == (request.param == "too many")
    return found


def test_nothing_else_reaches_the_owner(pair: list[Seen]) -> None:
    for seen in pair:
        for frame in seen.frames:
            assert isinstance(frame.message, Ready | Reported | Stopped | Unmasked)
            assert isinstance(frame.message, Unmasked) or not frame.tensors
        lost = {seen.rank[client] for client in seen.dropped}
        remaining = set(range(1, CLIENTS + 1)) - (lost if seen.repeated else set())
        assert {rank for attempt, rank in seen.vectors if attempt == seen.repeated} == remaining
        for rank in lost:  # a worker none of whose clients is left
            assert not seen.vectors[0, rank].any()


def test_vectors_are_uniform_and_not_related(pair: list[Seen]) -> None:
    for seen in pair:
        lost = {seen.rank[client] for client in seen.dropped}
        assert secretive([v for (_, rank), v in seen.vectors.items() if rank not in lost])


def test_two_updates_of_one_client_cannot_be_told_apart(pair: list[Seen]) -> None:
    first, second = pair
    for place in first.vectors:
        change = second.vectors[place] - first.vectors[place]
        # Words of other clients are the same, or differ by a mask that they have with it.
        assert not change.any() or surprise(change) < UNIFORM
    rank = first.rank[TARGET]
    mine = [seen.vectors[seen.repeated, rank] for seen in pair]
    assert secretive(mine)


def test_nor_with_all_masks_taken_away_that_the_owner_can(pair: list[Seen]) -> None:
    first, second = (seen.bare() for seen in pair)
    assert TARGET in first
    for bare in (first, second):
        assert set(bare) == set(range(CLIENTS)) - set(pair[0].dropped)
        assert secretive(list(bare.values()))
        assert surprise(sum(bare.values())) > 100  # the sum is there to be seen
    assert surprise(second[TARGET] - first[TARGET]) < UNIFORM
    # What the owner is to learn: the sum has moved by the client's share of 0.25, everywhere.
    change = sum(second.values()) - sum(first.values())
    assert float(change.double().mean()) * 2.0**-RESOLUTION == pytest.approx(0.25 / 7, rel=0.05)
    assert int(change.max() - change.min()) < 2**20  # float32 rounds
    assert pair[0].model != pair[1].model


@pytest.mark.parametrize("left_out", ["all masks", "self-masks", "masks of pairs", "one mask"])
def test_masks_that_are_left_out_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """The tests above can fail: a client's own mask alone, say, is taken away by the owner."""
    masks = Masker.masks
    broken: dict[str, Callable[[list[Mask]], list[Mask]]] = {
        "all masks": lambda found: [],
        "self-masks": lambda found: found[1:],
        "masks of pairs": lambda found: found[:1],
        "one mask": lambda found: [*found[:1], *[(bytes(16), 1)] * len(found[1:])],
    }
    monkeypatch.setattr(Masker, "masks", lambda self: broken[left_out](masks(self)))
    seen = watch(config_for(tmp_path, 0.0))
    vectors = secretive(list(seen.vectors.values()))
    bare = secretive(list(seen.bare().values()))
    # Without self-masks the words are uniform until somebody is called lost: see test_masker.
    assert (vectors, bare) == {
        "all masks": (False, True),
        "self-masks": (True, True),
        "masks of pairs": (True, False),
        "one mask": (True, False),
    }[left_out]
