"""Which models are recorded, and that no other state of Python is frozen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmpi import models
from fedmpi.federated.record_training import record_training
from fedmpi.federated.training_step import TrainingStep
from fedmpi.tensors.code import code_of
from tests.federated import factories

SHAPE, CLASSES = (1, 12, 12), 10


def layers(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES), *more)


def recorded(model: nn.Module) -> bool:
    return bool(record_training(model, functional.cross_entropy, SHAPE, CLASSES))


@pytest.mark.parametrize("name", ["softmax", "2nn", "cnn", "lenet", "resnet18-gn"])
def test_models_of_the_package(name: str) -> None:
    assert recorded(models.build(name, SHAPE, CLASSES))


class Counting(nn.Module):
    """A person's own module, whose Python state changes what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class OwnLinear(nn.Linear):
    pass


def hooked() -> nn.Module:
    model = layers()
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    return model


def hooked_parameter() -> nn.Module:
    model = layers()
    model[1].weight.register_hook(lambda gradient: gradient * 2)
    return model


def patched() -> nn.Module:
    model = layers()
    model[1].forward = lambda x: functional.linear(x, model[1].weight) * 2
    return model


def scalar() -> nn.Module:
    model = layers(nn.PReLU())
    model[2].weight = nn.Parameter(torch.tensor(0.25))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.build("resnet18", (3, 12, 12), CLASSES),  # batch norm's buffers
        lambda: factories.dropout(SHAPE, CLASSES),
        lambda: factories.mixed(SHAPE, CLASSES),
        lambda: layers(Counting()),
        lambda: nn.Sequential(nn.Flatten(), OwnLinear(144, CLASSES)),
        lambda: layers(nn.RReLU()),
        lambda: layers(nn.BatchNorm1d(CLASSES, track_running_stats=False)),  # not of one row
        hooked,
        hooked_parameter,
        patched,
        scalar,
    ],
)
def test_models_that_go_step_by_step(make: Callable[[], nn.Module]) -> None:
    assert not recorded(make())


def test_the_model_and_the_generator_stay_as_they_were() -> None:
    model = models.build("cnn", SHAPE, CLASSES).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    assert recorded(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_two_ranks_that_record_have_the_same_program() -> None:
    found = [
        record_training(models.build("cnn", SHAPE, CLASSES), functional.cross_entropy, SHAPE, 10)
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_weights_are_updated_by_one_operator_each() -> None:
    model = models.build("2nn", SHAPE, CLASSES)
    [_, several] = record_training(model, functional.cross_entropy, SHAPE, CLASSES)
    assert code_of(several).count("alpha=numbers[0]") == 6
    assert code_of(several).count("addmm_(state") == 3


def test_tied_and_frozen_weights() -> None:
    torch.manual_seed(0)
    made = []
    for is_recorded in (False, True):
        torch.manual_seed(0)
        shared = nn.Linear(144, 144)
        model = nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared, nn.Linear(144, CLASSES))
        model[4].bias.requires_grad_(False)
        programs = record_training(model, functional.cross_entropy, SHAPE, CLASSES)
        step = TrainingStep(model, functional.cross_entropy, programs if is_recorded else ())
        assert programs
        x, y = torch.randn(6, *SHAPE), torch.randint(0, CLASSES, (6,))
        total = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(4):
                step(x, y, total, -0.1)
        made.append((model, total))
    torch.testing.assert_close(made[0][1], made[1][1])
    for a, b in zip(made[0][0].parameters(), made[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
