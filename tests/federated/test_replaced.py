"""Cheaper modules in place of a model's own, and losses on one-hot labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmpi import models
from fedmpi.errors import UsageError
from fedmpi.federated.losses import loss_on_labels, loss_on_targets, targets
from fedmpi.federated.replaced import PolynomialSigmoid, Square, replace_modules


def kinds(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules() if not list(m.children()) and not list(m.parameters())]


def test_nothing_is_replaced_unasked() -> None:
    model = models.build("cnn", (1, 28, 28), 10)
    before = str(model)
    assert str(replace_modules(model, "model", "model")) == before


def test_activations_and_poolings_are_replaced_wherever_they_are() -> None:
    model = nn.Sequential(nn.Sequential(nn.Tanh(), nn.MaxPool2d(3, 2, 1)), nn.ReLU(), nn.Sigmoid())
    replace_modules(model, "square", "average")
    assert kinds(model) == [Square, nn.AvgPool2d, Square, Square]
    pooled = model[0][1]
    assert (pooled.kernel_size, pooled.stride, pooled.padding) == (3, 2, 1)
    replace_modules(model, "polynomial", "max")
    assert kinds(model) == [Square, nn.MaxPool2d, Square, Square]


def test_lenet_with_either_pooling_keeps_its_shapes() -> None:
    for pooling in ("average", "max"):
        model = replace_modules(models.build("lenet", (1, 28, 28), 10), "relu", pooling)
        models.check(model, "lenet", (1, 28, 28), 10)
        assert sum(p.numel() for p in model.parameters()) == 61_706


def test_the_polynomial_is_near_the_sigmoid() -> None:
    x = torch.linspace(-5, 5, 101)
    assert (PolynomialSigmoid()(x) - torch.sigmoid(x)).abs().max() < 0.1


@pytest.mark.parametrize("name", ["auto", "cross_entropy", "bce", "mse"])
def test_losses_on_labels_are_those_on_one_hot_rows(name) -> None:
    output, y = torch.randn(7, 3), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    found = loss_on_labels(name, 3)(output, y)
    assert found == loss_on_targets(name, 3)(output, targets(y, 3))
    if name in ("auto", "cross_entropy"):
        torch.testing.assert_close(found, functional.cross_entropy(output, y))


def test_a_regression_has_one_loss() -> None:
    y = torch.randn(5)
    assert loss_on_labels("auto", 0)(y + 1, y) == pytest.approx(1)
    with pytest.raises(UsageError, match="loss = 'bce': expected mse, since the data has no clas"):
        loss_on_targets("bce", 0)
