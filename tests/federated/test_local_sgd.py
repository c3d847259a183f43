"""A client's local epochs are those of a plain loop with torch.optim.SGD, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.config import FederatedConfig
from fedmpi.federated.local_sgd import local_sgd
from tests.federated.factories import mixed, small_resnet
from tests.federated.lab import bits
from tests.federated.reference import client_update

MODELS: dict[str, Callable[[], nn.Module]] = {
    "2nn": lambda: models.build("2nn", (1, 8, 8), 10),
    "cnn": lambda: models.build("cnn", (1, 8, 8), 10),
    "small_resnet": lambda: small_resnet((1, 8, 8), 10),
    "mixed": lambda: mixed((1, 8, 8), 10),
}


@pytest.mark.parametrize(
    ("rows", "batch"), [(37, 10), (40, 10), (37, "full"), (37, 37), (37, 100), (2, 1), (3, 2)]
)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_as_a_plain_loop(name: str, rows: int, batch: int | str) -> None:
    """With a last batch that is smaller, exactly full, the only one; and full batches."""
    if name == "small_resnet" and batch in (1, 2):
        rows, batch = 6, 3
    torch.set_num_threads(1)
    torch.manual_seed(rows)
    x, y = torch.randn(rows, 1, 8, 8), torch.randint(0, 10, (rows,))
    plain = MODELS[name]()
    ours = deepcopy(plain)
    how = FederatedConfig(epochs=3, batch_size=batch, lr=0.05)
    expected = client_update(plain, (x, y), how, 0.05, 10, {"shuffle": 11, "dropout": 0})
    loss = local_sgd(
        ours,
        models.task_loss(10),
        x,
        y,
        epochs=3,
        batch_size=None if batch == "full" else batch,
        lr=0.05,
        seed=11,
    )
    assert bits(ours) == bits(plain)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert ours.training


def test_regression() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(25, 10), torch.randn(25)
    plain = models.build("linear", (10,), 0)
    ours = deepcopy(plain)
    how = FederatedConfig(epochs=2, batch_size=10, lr=0.01)
    client_update(plain, (x, y), how, 0.01, 0, {"shuffle": 5, "dropout": 0})
    local_sgd(ours, models.task_loss(0), x, y, epochs=2, batch_size=10, lr=0.01, seed=5)
    assert bits(ours) == bits(plain)


def test_the_order_depends_on_the_seed_and_full_batches_do_not() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(30, 1, 8, 8), torch.randint(0, 10, (30,))
    first = MODELS["2nn"]()

    def trained(seed: int, batch: int | None) -> dict[str, bytes]:
        model = deepcopy(first)
        local_sgd(model, models.task_loss(10), x, y, epochs=1, batch_size=batch, lr=0.1, seed=seed)
        return bits(model)

    assert trained(1, 10) == trained(1, 10)
    assert trained(1, 10) != trained(2, 10)
    assert trained(1, None) == trained(2, None) == trained(3, 30)


def test_rows_are_not_written_to() -> None:
    x, y = torch.randn(30, 1, 8, 8), torch.randint(0, 10, (30,))
    before = x.clone(), y.clone()
    state = torch.get_rng_state()
    local_sgd(MODELS["2nn"](), models.task_loss(10), x, y, epochs=1, batch_size=7, lr=0.1, seed=1)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    model = MODELS["2nn"]()
    torch.set_rng_state(state)
    local_sgd(model, models.task_loss(10), x, y, epochs=1, batch_size=7, lr=0.1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator is left alone


def test_a_last_batch_too_small_is_joined_to_the_one_before() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    x, y = torch.randn(7, 3), torch.zeros(7, dtype=torch.int64)
    options = {"epochs": 2, "batch_size": 3, "lr": 0.1, "seed": 0}
    local_sgd(model, nn.functional.cross_entropy, x, y, smallest_batch=2, **options)
    assert sizes == [3, 4] * 2
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        local_sgd(model, nn.functional.cross_entropy, x, y, **options)


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
    local_sgd(nn.Linear(4, 2), loss_of, x, y, smallest_batch=smallest, **how)
    assert seen == expected * 2
