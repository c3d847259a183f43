"""Encrypted jobs on threads of this process: beside the clear, what is learnt, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.config import Config, DataConfig, FederatedConfig, Recipe, SecureConfig
from fedmpi.errors import FedMPIError, RemoteError
from fedmpi.federated.job import Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.federated.on_shares import OnShares
from fedmpi.federated.opened import opened
from fedmpi.federated.seeds import derive
from fedmpi.tensors.session import simulate
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare

DIGITS = Recipe(source="digits", clients=3, test_fraction=0.9)
DIABETES = Recipe(source="diabetes", clients=3, test_fraction=0.5)


def factory(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    width = torch.Size(row_shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, classes))


def without_secure_form(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    return nn.Sequential(factory(row_shape, classes), Bessel())


OWN = f"{__name__}:factory"


def config_of(
    folder: Path,
    recipe: Recipe = DIGITS,
    workers: int = 3,
    model: str = OWN,
    secure: dict[str, Any] | None = None,
    **federated: Any,
) -> Config:
    path = folder / f"{Path(recipe.source).stem}-{workers}"
    if not path.exists():
        prepare(recipe, workers, path, None)
    how = {"rounds": 2, "epochs": 1, "batch_size": 64, "lr": 0.1, **federated}
    return Config(
        model=model,
        data=DataConfig(path=str(path)),
        federated=FederatedConfig(mode="encrypted", **how),
        secure=SecureConfig(**(secure or {})),
    )


def play(config: Config, workers: int = 3) -> tuple[nn.Module, list[RoundMetrics]]:
    rounds: list[RoundMetrics] = []
    with in_process_crew(workers) as crew, opened(config, crew) as job:
        job.run(Observer(rounds.append, lambda clients: None))
    return job.model, rounds


def in_the_clear(config: Config) -> Config:
    return replace(config, secure=replace(config.secure, clear=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encrypted")


# ---- beside the clear ----

CASES: dict[str, tuple[Recipe, str, dict[str, Any], dict[str, Any]]] = {
    "cross-entropy": (DIGITS, OWN, {}, {"momentum": 0.9, "weight_decay": 0.01}),
    "one-hot": (DIGITS, OWN, {"loss": "mse"}, {"lr": 0.5, "momentum": 0.9}),
    "logistic": (DIGITS, "softmax", {"loss": "bce"}, {"epochs": 2}),
    "linear": (DIABETES, "linear", {}, {"batch_size": "full", "rounds": 4}),
    "square": (DIGITS, OWN, {"activation": "square"}, {"lr": 0.02, "lr_decay": 0.5}),
    "polynomial": (DIGITS, OWN, {"activation": "polynomial"}, {}),
    "finer": (DIGITS, "softmax", {"bits": 20, "loss": "mse"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_that_of_the_clear(case: str, folder: Path) -> None:
    recipe, model, secure, federated = CASES[case]
    config = config_of(folder, recipe, model=model, secure=secure, **federated)
    found, rounds = play(config)
    expected, clear = play(in_the_clear(config))
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.01, rtol=0.01)
    for one, other in zip(rounds, clear, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=0.01)
        assert one.test_loss == pytest.approx(other.test_loss, abs=0.01)
        assert one.test_metric == pytest.approx(other.test_metric, abs=0.01)
    assert rounds[-1].train_loss < rounds[0].train_loss
    assert sum(t.openings for t in rounds[0].traffic) > 0
    assert clear[0].traffic == []


def test_adam_learns(folder: Path) -> None:
    """Squares of gradients below 2^-16 are 0 in fixed point: not the model of the clear."""
    _, rounds = play(config_of(folder, model="softmax", secure={"optimizer": "Adam"}, lr=0.02))
    assert rounds[-1].train_loss < rounds[0].train_loss


def test_some_of_the_workers_are_parties(folder: Path) -> None:
    config = config_of(folder, model="softmax", secure={"parties": (3, 1), "loss": "mse"})
    found, rounds = play(config)
    expected, _ = play(in_the_clear(config))
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.005, rtol=0)
    assert rounds[0].examples == 180, "rows of all three"


def test_evaluation_when_it_is_due_and_the_target(folder: Path) -> None:
    config = config_of(folder, model="softmax", lr=1.0, rounds=9, eval_every=2, target_accuracy=0.3)
    _, rounds = play(config)
    assert [m.test_metric is None for m in rounds] == [True, False]


# ---- what the owner learns ----


def test_the_metric_and_nothing_else(folder: Path) -> None:
    config = config_of(folder, secure={"learns": "metric"})
    found, rounds = play(config)
    _, clear = play(in_the_clear(config))
    assert [m.train_loss for m in rounds] == [m.test_loss for m in rounds] == [None, None]
    for one, other in zip(rounds, clear, strict=True):
        assert one.test_metric == pytest.approx(other.test_metric, abs=0.003)
    torch.manual_seed(derive(config.seed, "model"))
    first = factory((1, 8, 8), 10)
    for mine, theirs in zip(found.parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs), "the owner's first weights"


def test_the_r2_of_a_model_that_stays_with_the_parties(folder: Path) -> None:
    config = config_of(folder, DIABETES, model="linear", secure={"learns": "metric"})
    _, rounds = play(config)
    _, clear = play(in_the_clear(config))
    assert rounds[-1].metric == "r2"
    assert rounds[-1].test_metric == pytest.approx(clear[-1].test_metric, abs=0.003)


def test_the_parties_give_away_no_row(folder: Path) -> None:
    """What the job has is what a person's own code would have: shares of private rows."""
    config = config_of(folder)
    with simulate(3) as workers:
        where = OnShares(workers, workers[:2], 16)
        x, y = where.train_rows(Path(config.data.path), 10, verify=True)
        assert (x.shape, y.shape) == ((180, 1, 8, 8), (180, 10))
        for secret in (x, y, where.rows(x, torch.tensor([0])), x.sum()):
            with pytest.raises(RemoteError, match=r"keeps object .* private"):
                secret.reveal()
        assert where.disclosed(lambda t: t.sum())(y).item() == 180


# ---- mistakes ----


def refusal(config: Config, workers: int = 3) -> str:
    with pytest.raises(FedMPIError) as caught:
        play(config, workers)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, RemoteError) or not caught.value.remote_traceback
    return str(caught.value)


def test_one_worker_is_no_group(folder: Path) -> None:
    assert refusal(config_of(folder, workers=1), 1) == (
        "mode = 'encrypted' with 1 worker: what is shared needs at least 2 parties; run with "
        "mpirun -n 3, or in one process with --workers 2"
    )


def test_a_party_that_is_not_there(folder: Path) -> None:
    assert refusal(config_of(folder, secure={"parties": (1, 7)})) == (
        "parties = [1, 7]: there is no worker on rank 7, the workers have the ranks 1 to 3"
    )


def test_an_operator_without_a_secure_form(folder: Path) -> None:
    told = refusal(config_of(folder, model=f"{__name__}:without_secure_form"))
    assert told.startswith(f"model {__name__}:without_secure_form on shares: operator 'bessel")
    assert "has no secure form" in told


@pytest.mark.parametrize(
    ("optimizer", "momentum", "words"),
    [
        ("SDG", 0.0, "optimizer = 'SDG' (did you mean 'SGD'?)"),
        ("Adam", 0.5, "optimizer = 'Adam' with momentum = 0.5: "),
    ],
)
def test_an_optimiser_that_is_none(
    folder: Path, optimizer: str, momentum: float, words: str
) -> None:
    config = config_of(folder, secure={"optimizer": optimizer}, momentum=momentum)
    assert refusal(config).startswith(words)


def test_a_loss_that_a_regression_has_not(folder: Path) -> None:
    config = config_of(folder, DIABETES, model="linear", secure={"loss": "bce"})
    assert refusal(config) == "loss = 'bce': expected mse, since the data has no classes"
    config = config_of(folder, DIABETES, model="linear", target_accuracy=0.5)
    assert "with a regression, which has no accuracy" in refusal(config)


def test_values_out_of_range(tmp_path: Path) -> None:
    x = np.full((40, 3), 3e9, np.float32)
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(40) % 2)
    recipe = Recipe(source=str(tmp_path / "large.npz"), clients=3, normalise="none")
    told = refusal(config_of(tmp_path, recipe, model="softmax", lr=1e-6))
    assert "values from 3e+09 to 3e+09 cannot be shared: with 16 fractional bits" in told


def test_a_training_that_leaves_the_range(folder: Path) -> None:
    config = config_of(folder, secure={"activation": "square"}, lr=50.0, rounds=5)
    told = refusal(config)
    assert "the numbers have left their range; lower the learning rate (50)" in told


# ---- the accuracy of a real training ----


@pytest.mark.long
def test_an_mlp_learns_digits_as_well_as_in_the_clear(tmp_path: Path) -> None:
    recipe = Recipe(source="mnist5k", clients=3)
    how: dict[str, Any] = {"model": "2nn", "momentum": 0.9, "eval_every": 5}
    config = config_of(tmp_path, recipe, rounds=5, **how)
    _, rounds = play(config)
    _, clear = play(in_the_clear(config))
    assert clear[-1].test_metric > 0.93
    assert rounds[-1].test_metric == pytest.approx(clear[-1].test_metric, abs=0.01)
