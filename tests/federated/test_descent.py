"""What is done with a gradient: `torch.optim.SGD`, and what FedProx and SCAFFOLD add to it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fedmpi import models
from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.record_training import record_training
from fedmpi.federated.training_step import TrainingStep
from fedmpi.tensors.code import code_of

SHAPE = (1, 8, 8)
DESCENTS = {
    "plain": PLAIN,
    "momentum": Descent(momentum=0.9),
    "decay": Descent(decay=0.3),
    "drift": Descent(drifts=True),
    "decay and drift": Descent(decay=0.3, drifts=True),
    "all": Descent(momentum=0.5, decay=0.3, drifts=True),
}


def sgd(descent: Descent, parameter: torch.Tensor, lr: float) -> torch.optim.SGD:
    options = {"momentum": descent.momentum, "weight_decay": descent.decay}
    return torch.optim.SGD([parameter], lr, **options)


@pytest.mark.parametrize("name", DESCENTS)
def test_it_is_pytorchs_sgd_with_a_drift_on_the_gradient(name: str) -> None:
    descent = DESCENTS[name]
    torch.manual_seed(0)
    ours = torch.randn(5, 3, dtype=torch.float64)
    plain = ours.clone().requires_grad_()
    drift = torch.randn(5, 3, dtype=torch.float64)
    optimizer = sgd(descent, plain, 0.1)
    beside = descent.beside([ours])
    assert len(beside) == descent.kinds
    descent.begin(beside, [drift] if descent.drifts else [])
    for _ in range(4):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        plain.grad = gradient + drift if descent.drifts else gradient.clone()
        optimizer.step()
        own = [kind[0] for kind in beside]
        descent.take(ours, gradient, own, descent.numbers(-0.1))
        torch.testing.assert_close(ours, plain.detach())


def test_every_client_begins_at_rest() -> None:
    descent = DESCENTS["all"]
    beside = descent.beside([torch.zeros(3)])
    for tensor in (t for kind in beside for t in kind):
        tensor.fill_(7.0)
    descent.begin(beside, [torch.arange(3.0)])
    assert beside[0][0].tolist() == [0, 0, 0]
    assert beside[1][0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_reach_is_how_far_a_constant_gradient_goes(momentum: float) -> None:
    descent = Descent(momentum)
    at, beside = torch.zeros(1, dtype=torch.float64), descent.beside([torch.zeros(1).double()])
    reached = [0.0]
    for _ in range(6):
        own = [kind[0] for kind in beside]
        descent.take(at, torch.ones(1, dtype=torch.float64), own, descent.numbers(-1.0))
        reached.append(-float(at))
    assert [descent.reach(steps) for steps in range(7)] == pytest.approx(reached)
    assert all(a < b for a, b in pairwise(reached))


@pytest.mark.parametrize("name", DESCENTS)
def test_a_recorded_step_is_that_of_autograd(name: str) -> None:
    descent, loss_of = DESCENTS[name], models.task_loss(10)
    programs = record_training(models.build("2nn", SHAPE, 10), loss_of, SHAPE, 10, descent)
    moved = []
    for given in ((), programs):
        torch.manual_seed(0)
        step = TrainingStep(models.build("2nn", SHAPE, 10), loss_of, given, descent)
        drift = [torch.randn_like(p) for p in step.model.parameters()]
        total = torch.zeros(1, dtype=torch.float64)
        for _ in range(2):  # what the first client leaves is nothing to the second
            step.begin(drift if descent.drifts else ())
            with torch.no_grad():
                for size in (6, 6, 1):
                    x, y = torch.randn(size, *SHAPE), torch.randint(0, 10, (size,))
                    step(x, y, total, -0.1)
        moved.append([total, *step.model.parameters()])
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DESCENTS)
def test_no_step_multiplies_a_matrix_by_a_number(name: str) -> None:
    """A decay of the weights, or the momentum of a v, is the product's own factor."""
    model = models.build("2nn", SHAPE, 10)
    [_, several] = record_training(model, models.task_loss(10), SHAPE, 10, DESCENTS[name])
    code = code_of(several)
    factors = bool(DESCENTS[name].momentum or DESCENTS[name].decay)
    assert code.count("addmm_(") == 3
    assert code.count("mul_.Tensor(") == 3 * factors  # those of the three biases
