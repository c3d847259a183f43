"""Jobs under secure aggregation: the bits of the clear, whoever drops out, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from fedmpi.comm.collective import reduce_sum
from fedmpi.comm.endpoint import Endpoint
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.threads import Hub
from fedmpi.config import AggregationConfig, CommConfig, Config, DetectConfig, Recipe, from_toml
from fedmpi.errors import FedMPIError, RemoteError, UsageError
from fedmpi.federated.cohort import drops_out
from fedmpi.federated.commands import SUM
from fedmpi.federated.masker import Masker
from fedmpi.federated.masking import MASKED, Agree, MaskSum, Unmask, Unmasked, mask_sum
from fedmpi.federated.neighbours import neighbourhood
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import Turn, Update
from fedmpi.study.progress import notes
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.vectors import ReduceSum, Route, give_sum
from fedmpi.workers.worker import Worker
from tests.comm.worlds import World
from tests.federated.lab import (
    Played,
    bits,
    check_phases,
    config_of,
    furthest,
    known,
    play,
    play_alone,
)
from tests.launch import ROOT

SHARES = AggregationConfig(kind="shares")
OPEN = AggregationConfig()
FEW = {"rounds": 2, "epochs": 1, "fraction": 0.9, "model": "softmax"}


def config_for(
    folder: Path, workers: int, secure: AggregationConfig = SHARES, **how: Any
) -> Config:
    """A job of two rounds of 13 clients of 14."""
    return config_of(folder, workers, **{**FEW, "secure": secure, **how})


def told(played: Played) -> list[tuple[Any, ...]]:
    """What rounds say that must not depend on how the sum came about."""
    return [(m.clients, m.examples, m.train_loss, m.dropped, m.excluded) for m in played.rounds]


# ---- the same bits ----


@pytest.mark.parametrize("dropout", [0.25, 0.6])
def test_every_world_has_the_bits_of_the_clear(world: World, folder: Path, dropout: float) -> None:
    """With 0.6, too few are left to open the first attempt."""

    def scenario(crew: Crew) -> None:
        alone = config_for(folder, 1, OPEN, dropout=dropout)
        clear = play_alone(alone, 1)
        for topology in ("star", "tree"):
            comm = CommConfig(topology=topology, chunk_kib=4)
            config = config_for(folder, len(crew.ranks), dropout=dropout, comm=comm)
            played = play(config, crew)
            assert bits(played.model) == bits(clear.model)
            assert [row[:4] for row in told(played)] == [row[:4] for row in told(clear)]
            assert [m.repeated for m in played.rounds] == [dropout > 0.5] * 2
        assert any(m.dropped for m in clear.rounds)

    world.lead(scenario)


@pytest.mark.parametrize(
    "how",
    [
        {"secure": replace(SHARES, neighbours=4), "recipe": Recipe(source="digits", clients=40)},
        {"secure": replace(SHARES, threshold=1.0), "dropout": 0.1},
        {"secure": replace(SHARES, threshold=0.51), "dropout": 0.4},
        {"mode": "scatter", "dropout": 0.2},
        {"model": "tests.federated.factories:small_resnet", "batch_size": 9, "dropout": 0.2},
        {"model": "tests.federated.factories:mixed", "dropout": 0.2},
        {"fraction": 0.14},  # two clients
        {"model": "2nn", "secure": SHARES},
    ],
    ids=lambda how: "-".join(map(str, how)),
)
def test_options_and_models_have_the_bits_of_the_clear(tmp_path: Path, how: dict) -> None:
    config = config_for(tmp_path, 3, **how)
    clear = replace(config, federated=replace(config.federated, secure=OPEN))
    first, second = play_alone(clear, 3), play_alone(config, 3)
    assert bits(first.model) == bits(second.model)
    assert told(first) == told(second)


def test_secrets_are_new_in_every_run_and_the_bits_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    masks = Masker.masks

    def keep(self: Masker) -> Any:
        found = masks(self)
        seen.extend({seed for seed, sign in found[: len(self.summed or [])]})
        return found

    monkeypatch.setattr(Masker, "masks", keep)
    config = config_for(tmp_path, 3)
    first, second = (bits(play_alone(config, 3).model) for _ in range(2))
    assert first == second
    assert len(seen) == len(set(seen)) == 2 * 2 * 13


# ---- dropouts ----


def test_who_drops_out_is_drawn_for_a_client_and_a_round() -> None:
    drawn = [[drops_out(7, number, c, 0.3) for c in range(200)] for number in (1, 2)]
    assert drawn[0] != drawn[1]
    assert all(30 < sum(row) < 90 for row in drawn)
    assert drawn[0] == [drops_out(7, 1, c, 0.3) for c in range(200)]
    assert not any(drops_out(7, 1, c, 0.0) for c in range(200))
    fewer = {c for c in range(200) if drops_out(7, 1, c, 0.1)}
    assert fewer <= {c for c in range(200) if drawn[0][c]}


@pytest.mark.parametrize("secure", [OPEN, SHARES], ids=["clear", "shares"])
def test_the_rest_is_averaged_as_if_the_lost_had_not_been_there(
    tmp_path: Path, secure: AggregationConfig
) -> None:
    config = config_for(tmp_path, 3, secure, dropout=0.3, on_bad_update="stop")
    played = play_alone(config, 3)
    start = known(config)
    for m, cohort in zip(played.rounds, start.cohorts, strict=True):
        lost = {c for c in cohort if drops_out(0, m.round, c, 0.3)}
        assert m.dropped == sorted(lost)
        assert m.clients == len(cohort) - len(lost)
        assert m.examples == sum(len(start.clients[c][1]) for c in cohort if c not in lost)
        assert m.excluded == []


def test_a_round_names_who_dropped_out(tmp_path: Path) -> None:
    [m, _] = play_alone(config_for(tmp_path, 3, dropout=0.6), 3).rounds
    [line] = notes(m)
    assert line.startswith("  clients 0, 1, 6, 7, 8 and ")
    assert line.endswith(
        " more dropped out; too few were left to open the sum, so the others shared it anew"
    )
    one = replace(m, dropped=[4], repeated=0)
    assert notes(one) == ["  client 4 dropped out"]


def test_too_few_left_end_the_job(tmp_path: Path) -> None:
    config = config_for(tmp_path, 3, dropout=0.9, rounds=9)
    with pytest.raises(
        FedMPIError, match=r"^round \d: 1 of 13 clients is left for the sum, which "
    ):
        play_alone(config, 3)
    nobody = replace(config, federated=replace(config.federated, dropout=0.999))
    for secure in (OPEN, SHARES):
        config = replace(nobody, federated=replace(nobody.federated, secure=secure))
        with pytest.raises(FedMPIError, match=r"^round 1: all 13 clients dropped out: lower drop"):
            play_alone(config, 3)


def test_workers_go_on_after_a_job_that_ended_so(tmp_path: Path) -> None:
    config = config_for(tmp_path, 2)
    few = replace(config, federated=replace(config.federated, dropout=0.9, rounds=9))
    with in_process_crew(2) as crew:
        with pytest.raises(FedMPIError, match="for the sum, which would be"):
            play(few, crew)
        again = bits(play(config, crew).model)
        assert bits(play(config, crew).model) == again


def test_clients_drop_out_where_updates_are_kept_too(tmp_path: Path) -> None:
    """Rules look at the updates of those that are left."""
    config = config_for(tmp_path, 3, OPEN, dropout=0.3)
    looked = replace(config, federated=replace(config.federated, detect=DetectConfig(score=True)))
    kept, summed = play_alone(looked, 3), play_alone(config, 3)
    assert told(kept) == told(summed)
    assert furthest(kept.model, summed.model) < 1e-5


def test_the_job_to_copy_can_be_read() -> None:
    config = from_toml(ROOT / "jobs" / "secure-aggregation.toml")
    assert config.federated.secure.kind == "shares"
    rank = dict.fromkeys(range(30), 1)
    assert neighbourhood(config, 1, 0, rank).threshold == 8  # as its comment says


# ---- bad updates ----


def spoil(monkeypatch: pytest.MonkeyPatch, client: int, value: float) -> None:
    """The client's update has that value somewhere."""
    finish = Trainer.finish

    def spoiled(self: Trainer, turn: Turn, weight: float) -> Update:
        update = finish(self, turn, weight)
        if turn.client == client:
            update.local[0][-3] = value
        return update

    monkeypatch.setattr(Trainer, "finish", spoiled)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "its update contains NaN"),
        (5e6, r"its update reaches 5e\+06, beyond 4.19e\+06"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_client_whose_update_cannot_be_summed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, reason: str, workers: int
) -> None:
    """Beyond the bound the ring would wrap; masked, nobody could see it."""
    spoil(monkeypatch, 5, value)
    how = {"dropout": 0.1, "fraction": 1.0}
    clear = play_alone(config_for(tmp_path, workers, OPEN, **how), workers)
    played = play_alone(config_for(tmp_path, workers, **how), workers)
    assert bits(played.model) == bits(clear.model)
    assert told(played) == told(clear)
    assert [[e.client for e in m.excluded] for m in played.rounds] == [[5], [5]]
    with pytest.raises(FedMPIError, match=f"round 1: client 5 on rank .: {reason}; on_bad_update"):
        play_alone(config_for(tmp_path, workers, on_bad_update="stop", **how), workers)


# ---- what is refused ----


def test_a_cohort_of_one_client_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, 3, fraction=0.01)
    with pytest.raises(
        UsageError, match=r"'shares' with a cohort of one client \(fraction = 0.01 of 14"
    ):
        play_alone(config, 3)


def test_a_worker_opens_a_round_once_and_alike(tmp_path: Path) -> None:
    config = config_for(tmp_path, 2, rounds=1, fraction=1.0)
    with in_process_crew(2) as crew:
        home = play(config, crew).job._rounds.home

        def unmask(*asked: Any) -> None:
            crew.tell(1, Unmask(*asked))
            crew.hear([1], Unmasked)

        unmask(1, 0, [])
        theirs = max(c for c, rank in home.rank.items() if rank == 2)
        with pytest.raises(
            RemoteError, match=rf"1 does not open .* clients \[{theirs}\] lost: it did"
        ):
            unmask(1, 0, [theirs])
        with pytest.raises(
            RemoteError, match=r"in round 1, attempt 0: it does not open round 1, att"
        ):
            unmask(1, 1, [])


@pytest.mark.parametrize(
    ("attempt", "what"), [(0, "begin round 1 after round 1"), (1, "repeat round 1 with its cli")]
)
def test_a_worker_does_not_mask_again_what_was_opened(
    tmp_path: Path, attempt: int, what: str
) -> None:
    with in_process_crew(2) as crew:
        home = play(config_for(tmp_path, 2, rounds=1, fraction=1.0), crew).job._rounds.home
        clients = sorted(home.rank)
        crew.tell(1, Agree(1, attempt, clients[1:], [home.rank[c] for c in clients[1:]]))
        crew.tell(1, Unmask(1, attempt, []))
        with pytest.raises(RemoteError, match=f"rank 1 does not {what}"):
            crew.hear([1], Unmasked)


def test_a_sum_that_was_not_masked_does_not_leave_a_worker() -> None:
    """Masking has failed, or its command was lost: `ReduceSum` finds nothing and sends zeros."""
    hub = Hub(2)
    worker = Worker(Endpoint(hub.transport(1)))
    worker.store[SUM] = torch.ones(5, dtype=torch.int64)
    with pytest.raises(FedMPIError, match="holds no tuple 'masker'"):
        mask_sum(worker, MaskSum(), [])
    give_sum(worker, ReduceSum(MASKED, Route([0, 1], "star", 4096), 5), [])
    total = torch.full((5,), 7)
    reduce_sum(hub.transport(0), [0, 1], total, "star", 4096)
    assert total.tolist() == [7] * 5


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"round": 2}, r"rank 2 dealt shares for round 2, attempt 0 to rank \d in round 1"),
        ({"clients": []}, r"rank 2 dealt shares of clients \[\] to rank \d in round 1"),
        ({}, r"rank 2 to rank \d in round 1, attempt 0: \d+ bytes of shares, expected \d+"),
    ],
    ids=["round", "clients", "length"],
)
def test_a_wrong_frame_between_workers_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict, what: str
) -> None:
    deal = Masker.deal

    def wrongly(self: Masker) -> Any:
        found = deal(self)
        if self.rank != 2:
            return found
        return [
            (to, msgspec.structs.replace(header, **wrong), data if wrong else data[:-1])
            for to, header, data in found
        ]

    monkeypatch.setattr(Masker, "deal", wrongly)
    with pytest.raises(RemoteError, match=rf"^worker on rank \d: {what}"):
        play_alone(config_for(tmp_path, 3), 3)


def test_wrong_shares_for_the_owner_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpatched = Masker.open
    config = config_for(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Masker, "open", lambda self, lost: unpatched(self, lost)[1:])
        with pytest.raises(
            ProtocolError, match=r"rank 1 in round 1: \d+ bytes of shares, expected"
        ):
            play_alone(config, 3)

    def flipped(self: Masker, lost: frozenset[int]) -> torch.Tensor:
        data = unpatched(self, lost)
        if self.rank == 2:
            data[16] ^= 1
        return data

    monkeypatch.setattr(Masker, "open", flipped)
    with pytest.raises(
        ProtocolError, match=r"round 1: a secret of client \d+ cannot be opened with"
    ):
        play_alone(config, 3)


# ---- what is told ----


def test_time_and_traffic_are_told(tmp_path: Path) -> None:
    clear = play_alone(config_for(tmp_path, 3, OPEN, dropout=0.1), 3)
    played = play_alone(config_for(tmp_path, 3, dropout=0.1), 3)
    again = play_alone(config_for(tmp_path, 3, dropout=0.6), 3)
    assert [m.mask_seconds for m in clear.rounds] == [None, None]
    check_phases(played.rounds)
    state = sum(t.numel() for t in played.model.state_dict().values())
    for open_round, m, repeated in zip(clear.rounds, played.rounds, again.rounds, strict=True):
        assert 0 < m.mask_seconds < m.seconds
        # As long a vector as in the clear, and shares; once more where a round is repeated.
        assert 0 < m.bytes_sent - open_round.bytes_sent < 13 * 12 * 200
        assert repeated.bytes_sent > m.bytes_sent + 8 * state
