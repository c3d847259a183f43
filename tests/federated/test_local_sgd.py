"""A client's local epochs are those of a plain loop with torch.optim.SGD.

With autograd to the bit; recorded within float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.config import FederatedConfig
from fedmpi.federated.local_sgd import local_sgd
from fedmpi.federated.record_training import record_training
from fedmpi.federated.training_step import TrainingStep
from fedmpi.workers.program import Program
from tests.federated.factories import mixed, small_resnet
from tests.federated.lab import bits, furthest
from tests.federated.reference import client_update

MODELS: dict[str, Callable[[], nn.Module]] = {
    "2nn": lambda: models.build("2nn", (1, 8, 8), 10),
    "cnn": lambda: models.build("cnn", (1, 8, 8), 10),
    "small_resnet": lambda: small_resnet((1, 8, 8), 10),
    "mixed": lambda: mixed((1, 8, 8), 10),
    "linear": lambda: models.build("linear", (1, 8, 8), 0),
    "softmax": lambda: models.build("softmax", (1, 8, 8), 10),
}
RECORDED = ("2nn", "cnn", "linear", "softmax")


SIZES = [(37, 10), (40, 10), (37, "full"), (37, 37), (37, 100), (2, 1), (3, 2)]
"""Rows and batch: a last batch that is smaller, exactly full, the only one, full, of one row."""


def both(
    name: str, rows: int, batch: int | str, programs: Sequence[Program]
) -> tuple[nn.Module, nn.Module]:
    """The model after a client's epochs, and after those of the plain loop."""
    torch.set_num_threads(1)
    torch.manual_seed(rows)
    classes = 0 if name == "linear" else 10
    x = torch.randn(rows, 1, 8, 8)
    y = torch.randint(0, classes, (rows,)) if classes else torch.randn(rows)
    plain = MODELS[name]()
    ours = deepcopy(plain)
    how = FederatedConfig(epochs=3, batch_size=batch, lr=0.05)
    expected = client_update(plain, (x, y), how, 0.05, classes, {"shuffle": 11, "dropout": 0})
    loss = local_sgd(
        TrainingStep(ours, models.task_loss(classes), programs),
        x,
        y,
        epochs=3,
        batch_size=None if batch == "full" else batch,
        lr=0.05,
        seed=11,
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert ours.training
    return ours, plain


@pytest.mark.parametrize(("rows", "batch"), SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_as_a_plain_loop(name: str, rows: int, batch: int | str) -> None:
    if name == "small_resnet" and batch in (1, 2):
        rows, batch = 6, 3
    ours, plain = both(name, rows, batch, ())
    assert bits(ours) == bits(plain)


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Program]]:
    return {name: programs_of(name) for name in MODELS}


def programs_of(name: str) -> list[Program]:
    classes = 0 if name == "linear" else 10
    return record_training(MODELS[name](), models.task_loss(classes), (1, 8, 8), classes)


@pytest.mark.parametrize(("rows", "batch"), SIZES)
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_loop_is_the_plain_one_within_rounding(
    name: str, rows: int, batch: int | str, recorded: dict[str, list[Program]]
) -> None:
    assert len(recorded[name]) == 2
    ours, plain = both(name, rows, batch, recorded[name])
    assert furthest(ours, plain) < 2e-6


def test_the_learning_rate_is_that_of_the_call(recorded: dict[str, list[Program]]) -> None:
    x, y = torch.randn(30, 1, 8, 8), torch.randint(0, 10, (30,))
    first = MODELS["2nn"]()
    moved = []
    for programs in ((), recorded["2nn"]):
        model = deepcopy(first)
        step = TrainingStep(model, models.task_loss(10), programs)
        for lr in (0.1, 0.02, 0.0):
            local_sgd(step, x, y, epochs=1, batch_size=30, lr=lr, seed=1)
        moved.append(model)
    assert furthest(*moved) < 2e-6
    assert furthest(moved[0], first) > 1e-3


def test_the_order_depends_on_the_seed_and_full_batches_do_not() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(30, 1, 8, 8), torch.randint(0, 10, (30,))
    first = MODELS["2nn"]()

    def trained(seed: int, batch: int | None) -> dict[str, bytes]:
        model = deepcopy(first)
        local_sgd(
            TrainingStep(model, models.task_loss(10)),
            x,
            y,
            epochs=1,
            batch_size=batch,
            lr=0.1,
            seed=seed,
        )
        return bits(model)

    assert trained(1, 10) == trained(1, 10)
    assert trained(1, 10) != trained(2, 10)
    assert trained(1, None) == trained(2, None) == trained(3, 30)


def step_of(name: str) -> TrainingStep:
    return TrainingStep(MODELS[name](), models.task_loss(10))


def test_rows_are_not_written_to() -> None:
    x, y = torch.randn(30, 1, 8, 8), torch.randint(0, 10, (30,))
    before = x.clone(), y.clone()
    state = torch.get_rng_state()
    local_sgd(step_of("2nn"), x, y, epochs=1, batch_size=7, lr=0.1, seed=1)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    step = step_of("2nn")
    torch.set_rng_state(state)
    local_sgd(step, x, y, epochs=1, batch_size=7, lr=0.1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator is left alone


def test_a_last_batch_too_small_is_joined_to_the_one_before() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    x, y = torch.randn(7, 3), torch.zeros(7, dtype=torch.int64)
    options = {"epochs": 2, "batch_size": 3, "lr": 0.1, "seed": 0}
    step = TrainingStep(model, nn.functional.cross_entropy)
    local_sgd(step, x, y, smallest_batch=2, **options)
    assert sizes == [3, 4] * 2
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        local_sgd(step, x, y, **options)


@pytest.mark.parametrize(
    ("rows", "batch", "smallest", "expected"),
    [
        (21, 10, 2, [10, 11]),
        (22, 10, 2, [10, 10, 2]),
        (20, 10, 2, [10, 10]),
        (3, 2, 2, [3]),
        (21, 10, 1, [10, 10, 1]),
        (1, 10, 2, [1]),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(
    rows: int, batch: int, smallest: int, expected: list[int]
) -> None:
    seen: list[int] = []

    def loss_of(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(y))
        return output.square().mean()

    x, y = torch.randn(rows, 4), torch.zeros(rows, dtype=torch.int64)
    how = {"epochs": 2, "batch_size": batch, "lr": 0.1, "seed": 1}
    local_sgd(TrainingStep(nn.Linear(4, 2), loss_of), x, y, smallest_batch=smallest, **how)
    assert seen == expected * 2
