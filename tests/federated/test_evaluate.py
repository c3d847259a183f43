"""Loss, accuracy and R^2 are what scikit-learn says they are."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score
from torch import nn

from fedmpi.federated.evaluate import BATCH, Evaluation, batches, metric_name
from fedmpi.federated.evaluate import evaluate as evaluate_blocks
from tests.federated.factories import dropout

CPU = torch.device("cpu")


def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, classes: int) -> Evaluation:
    return evaluate_blocks(model, batches(x, y), classes, CPU)


ROWS = [1, 2, 359, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 17]


@pytest.mark.parametrize("rows", ROWS)
def test_classification(rows: int) -> None:
    torch.manual_seed(rows)
    model, x = nn.Linear(20, 5), torch.randn(rows, 20)
    y = torch.randint(0, 5, (rows,))
    found = evaluate(model, x, y, 5)
    with torch.no_grad():
        logits = model(x).double()
    assert found.metric == accuracy_score(y, logits.argmax(1))
    expected = log_loss(y, logits.softmax(1), labels=range(5))
    assert found.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_regression(rows: int, shift: float) -> None:
    torch.manual_seed(rows)
    model = nn.Sequential(nn.Linear(20, 1), nn.Flatten(0))
    x, y = torch.randn(rows, 20), torch.randn(rows) + shift
    found = evaluate(model, x, y, 0)
    with torch.no_grad():
        predicted = model(x)
    assert found.loss == pytest.approx(mean_squared_error(y, predicted), rel=1e-5)
    if rows == 1:
        assert math.isnan(found.metric)
    else:
        assert found.metric == pytest.approx(r2_score(y, predicted), rel=1e-4, abs=1e-5)


def test_r2_of_equal_targets_is_nan_and_of_a_perfect_model_is_one() -> None:
    x = torch.arange(10.0)[:, None]
    model = nn.Flatten(0)
    assert math.isnan(evaluate(model, x, torch.full((10,), 3.0), 0).metric)
    assert evaluate(model, x, x.flatten(), 0).metric == 1.0


@pytest.mark.parametrize("value", [0.1, 1e9 / 3, -7e-20])
def test_r2_of_equal_targets_in_many_blocks_is_nan(value: float) -> None:
    x = torch.arange(3.0 * BATCH + 1)[:, None]
    assert math.isnan(evaluate(nn.Flatten(0), x, torch.full((len(x),), value), 0).metric)


@pytest.mark.parametrize("first", [0.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1e5, -1e7])
def test_r2_over_blocks_does_not_cancel(first: float, shift: float) -> None:
    """Neither far from 0 nor where the first target, from which it counts, is far from the rest."""
    torch.manual_seed(0)
    y = (torch.randn(3 * BATCH + 17) * 4 + shift).round()
    y[0] += first
    x = (y + torch.randn(len(y)).round())[:, None]
    found = evaluate(nn.Flatten(0), x, y, 0)
    assert found.metric == pytest.approx(r2_score(y.double(), x.double()), abs=1e-6)


def test_it_evaluates_in_eval_mode_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = dropout((1, 8, 8), 10).train()
    x, y = torch.randn(50, 1, 8, 8), torch.randint(0, 10, (50,))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    generator = torch.get_rng_state()
    first = evaluate(model, x, y, 10)
    assert evaluate(model, x, y, 10) == first
    assert not model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_names_of_the_metrics() -> None:
    assert (metric_name(10), metric_name(2), metric_name(0)) == ("accuracy", "accuracy", "r2")
