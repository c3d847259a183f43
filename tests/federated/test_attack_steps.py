"""Each attack does to an update, or to the rows, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.config import AttackConfig
from fedmpi.federated.attack_steps import FreeRider
from fedmpi.federated.seeds import generator
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import Turn, Update
from tests.federated.attacked import trainer_of

BAD, GOOD = 3, 4
OWN = "tests.federated.factories:"


def attacked(folder: Path, model: str, kind: Any, **options: Any) -> Trainer:
    """A trainer of whose clients one attacks."""
    trainer = trainer_of(folder, model, kind, **options)
    trainer.attackers = frozenset([BAD])
    return trainer


def trained(trainer: Trainer, number: int, client: int) -> tuple[list[torch.Tensor], Update]:
    """What a client has trained, and what becomes of it."""
    turn = Turn(number, client, trainer.clients.rows(client), 0.1)
    trainer.state.load(trainer.start)
    trainer.train(turn)
    local = [vector.clone() for vector in trainer.state.vectors]
    return local, trainer.finish(turn, 0.25)


@pytest.mark.parametrize("model", ["softmax", OWN + "mixed", OWN + "batch_norm"])
@pytest.mark.parametrize(
    ("kind", "options", "factor"),
    [
        ("sign_flip", {}, -4.0),
        ("sign_flip", {"scale": 1.0}, -1.0),
        ("scaled", {}, 10.0),
        ("scaled", {"scale": 2.5}, 2.5),
        ("backdoor", {}, 1.0),
        ("backdoor", {"scale": 5.0}, 5.0),
    ],
)
def test_factors(
    tmp_path: Path, model: str, kind: str, options: dict[str, Any], factor: float
) -> None:
    trainer = attacked(tmp_path, model, kind, **options)
    local, update = trained(trainer, 1, BAD)
    assert update.weight == 0.25
    for was, now, start in zip(local, update.local, trainer.start, strict=True):
        if factor == 1.0 or not was.is_floating_point():
            assert torch.equal(now, was)
        else:
            assert torch.equal(now, start + (was - start) * factor)
            assert not torch.equal(now, was)


def test_infinite_constants_stay(tmp_path: Path) -> None:
    trainer = attacked(tmp_path, OWN + "random_features", "sign_flip")
    local, update = trained(trainer, 1, BAD)
    assert any(vector.isinf().any() for vector in local)
    for was, now in zip(local, update.local, strict=True):
        assert torch.equal(now.isinf(), was.isinf())
        assert not now.isnan().any()


@pytest.mark.parametrize("kind", ["sign_flip", "gaussian", "free_rider", "nan", "backdoor", "alie"])
def test_honest_clients_and_earlier_rounds_are_let_pass(tmp_path: Path, kind: str) -> None:
    trainer = attacked(tmp_path, "2nn", kind, start=3)
    for number, client in ((3, GOOD), (2, BAD)):
        local, update = trained(trainer, number, client)
        assert all(map(torch.equal, update.local, local))


def test_gaussian_noise_takes_the_place_of_an_update(tmp_path: Path) -> None:
    trainer = attacked(tmp_path, "2nn", "gaussian", std=0.5)
    _, update = trained(trainer, 2, BAD)
    [start], [local] = trainer.start, update.local
    draws = generator(0, "attack", 2, BAD).standard_normal(start.numel(), np.float32)
    assert torch.equal(local, start + 0.5 * torch.from_numpy(draws))
    assert float((local - start).std()) == pytest.approx(0.5, rel=0.01)


def test_nan(tmp_path: Path) -> None:
    _, update = trained(attacked(tmp_path, OWN + "mixed", "nan"), 1, BAD)
    for vector in update.local:
        assert vector.isnan().all() == vector.is_floating_point()


def test_a_free_rider_sends_the_change_of_the_model(tmp_path: Path) -> None:
    trainer = attacked(tmp_path, "2nn", "free_rider", noise=0.0)
    first = trainer.start[0].clone()
    _, update = trained(trainer, 1, BAD)
    assert torch.equal(update.local[0], first)
    # It takes part again three rounds later.
    later = first + 0.25
    trainer.begin([later])
    for _ in range(2):  # a round that is begun anew gives the same
        _, update = trained(trainer, 4, BAD)
        assert torch.equal(update.local[0], later + (later - first) / 3)
    trainer.begin([later - 1])
    _, update = trained(trainer, 5, BAD)
    assert torch.equal(update.local[0], (later - 1) + ((later - 1) - later))
    [step] = trainer.client_steps
    assert isinstance(step, FreeRider)
    assert list(step._rounds) == [BAD]
    assert len(step._models[0][BAD]) == 2


def test_a_free_rider_hides_behind_noise(tmp_path: Path) -> None:
    trainer = attacked(tmp_path, "2nn", "free_rider")
    _, update = trained(trainer, 1, BAD)
    [start], [local] = trainer.start, update.local
    draws = generator(0, "attack", 1, BAD).standard_normal(start.numel(), np.float32)
    assert torch.equal(local, start + torch.from_numpy(draws) * 0.001)


def test_labels_are_flipped(tmp_path: Path) -> None:
    trainer = attacked(tmp_path, "2nn", "label_flip")
    [step] = trainer.client_steps
    for client in (BAD, GOOD):
        x, y = trainer.clients.load(client)
        found_x, found_y = step.rows(Turn(1, client, len(y), 0.1), x, y)
        assert found_x is x
        assert torch.equal(found_y, 9 - y if client == BAD else y)


@pytest.mark.parametrize(("poisoned", "rows"), [(0.3, 0.3), (1.0, 1.0), (1e-6, 0.0)])
def test_rows_get_the_trigger(tmp_path: Path, poisoned: float, rows: float) -> None:
    options = {"target": 7, "trigger": 2, "trigger_value": 1.5, "poisoned": poisoned}
    trainer = attacked(tmp_path, "2nn", "backdoor", **options)
    [step] = trainer.client_steps
    x, y = trainer.clients.load(BAD)
    before = x.clone(), y.clone()
    found_x, found_y = step.rows(Turn(1, BAD, len(y), 0.1), x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    marked = (found_x[:, :, -2:, -2:] == 1.5).flatten(1).all(1)
    assert int(marked.sum()) == max(round(rows * len(y)), 1)
    assert (found_y[marked] == 7).all()
    assert torch.equal(found_y[~marked], y[~marked])
    assert torch.equal(found_x[~marked], x[~marked])
    found_x[:, :, -2:, -2:] = x[:, :, -2:, -2:]
    assert torch.equal(found_x, x)
    others, _ = step.rows(Turn(2, BAD, len(y), 0.1), x, y)
    again = (others[:, :, -2:, -2:] == 1.5).flatten(1).all(1)
    assert poisoned == 1.0 or not torch.equal(again, marked)


def test_the_default_factors() -> None:
    assert AttackConfig().factor() == 1.0
    assert AttackConfig(kind="sign_flip").factor() == 4.0
