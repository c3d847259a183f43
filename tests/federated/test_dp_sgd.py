"""A client's turn of DP-SGD: its batches, its noise, its steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedmpi import models
from fedmpi.config import Config, FederatedConfig, PrivacyConfig
from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.dp_sgd import DpSgd, PrivateTurn, sampling_probability
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.local_sgd import batch_sizes
from fedmpi.federated.training_step import TrainingStep
from fedmpi.federated.update import Turn

SHAPE = (1, 8, 8)


def worker(
    multiplier: float = 1.0,
    *,
    batch: int | str = 10,
    epochs: int = 1,
    seed: int = 0,
    descent: Descent = PLAIN,
    **privacy: Any,
) -> DpSgd:
    """What a worker with a softmax regression trains with."""
    local = PrivacyConfig(kind="local", noise_multiplier=1.0, **privacy)
    config = Config(
        seed=seed, federated=FederatedConfig(batch_size=batch, epochs=epochs, privacy=local)
    )
    torch.manual_seed(0)
    model = FlatState(models.build("softmax", SHAPE, 10)).model.train()
    size = None if batch == "full" else batch
    trainer: Any = SimpleNamespace(
        config=config,
        step=TrainingStep(model, models.task_loss(10), (), descent),
        local_steps=lambda rows: epochs * len(batch_sizes(rows, size, 1)),
    )
    made = DpSgd(trainer)
    made.noise_multiplier = dict.fromkeys(range(3), multiplier)
    return made


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows)
    return torch.randn(rows, *SHAPE), torch.randint(0, 10, (rows,))


def state(of: DpSgd) -> torch.Tensor:
    parameters = of.gradients.model.parameters()
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def step(turn: PrivateTurn, x: torch.Tensor, y: torch.Tensor, lr: float) -> None:
    with torch.no_grad():
        turn.step(x, y, -lr)


# ---- batches ----


@pytest.mark.parametrize(
    ("rows", "batch", "expected"),
    [(40, 10, 0.25), (10, 10, 1.0), (3, 10, 1.0), (1, 1, 1.0), (7, "full", 1.0), (3, 2, 2 / 3)],
)
def test_sampling_probability(rows: int, batch: int | str, expected: float) -> None:
    assert sampling_probability(rows, batch) == expected


def test_batches_are_poisson_samples() -> None:
    """Their sizes are binomial, and every row is in a batch independently of all others."""
    rows, batch, batches = 40, 10, 4000
    turn = worker(batch=batch).turn(Turn(1, 0, rows, 0.1))
    member = np.zeros((batches, rows), dtype=bool)
    for k in range(batches):
        member[k, turn.sample(rows).numpy()] = True
    sizes = member.sum(1)
    assert sizes.mean() == pytest.approx(batch, abs=4 * np.sqrt(7.5 / batches))
    counts = np.bincount(sizes, minlength=rows + 1)
    law = stats.binom(rows, batch / rows).pmf(np.arange(rows + 1)) * batches
    common = law >= 5
    observed = [*counts[common], counts[~common].sum()]
    assert stats.chisquare(observed, [*law[common], law[~common].sum()]).pvalue > 1e-3
    spread = np.sqrt(batches * 0.25 * 0.75)
    assert (abs(member.sum(0) - batches / 4) < 4.5 * spread).all()
    together = np.corrcoef(member.T)[np.triu_indices(rows, 1)]
    assert abs(together).max() < 5 / np.sqrt(batches)


def test_full_batches_have_all_rows() -> None:
    turn = worker(batch="full").turn(Turn(1, 0, 12, 0.1))
    assert turn.sample(12).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("rows", "batch", "steps"), [(37, 10, 4), (40, 10, 4), (3, 10, 1), (1, 10, 1), (37, "full", 1)]
)
def test_as_many_steps_as_without_privacy(
    rows: int, batch: int | str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(PrivateTurn, "step", lambda _, x, y, step_size: seen.append(step_size))
    worker(batch=batch, epochs=3).turn(Turn(1, 0, rows, 0.2)).train(*data(rows))
    assert seen == [-0.2] * (3 * steps)


# ---- steps ----


def test_a_step_without_noise_is_clipped_sgd_over_the_expected_batch() -> None:
    of = worker(0.0, batch=10, clip=0.7)
    x, y = data(6)  # a batch of 6 where 10 were expected
    before = state(of)
    with torch.no_grad():
        sums = torch.cat([t.flatten() for t in of.gradients(x, y)])
    step(of.turn(Turn(1, 0, 50, 0.3)), x, y, 0.3)
    torch.testing.assert_close(state(of), before - 0.3 * sums / 10)


@pytest.mark.parametrize(("rows", "batch", "expected"), [(50, 10, 10), (7, 10, 7), (7, "full", 7)])
def test_the_noise_of_a_step(rows: int, batch: int | str, expected: int) -> None:
    """Gaussian of standard deviation lr x noise multiplier x clip / expected rows, on a batch
    without rows as on any other."""
    of = worker(1.7, batch=batch, clip=0.5)
    nothing = torch.empty(0, *SHAPE), torch.empty(0, dtype=torch.int64)
    turn = of.turn(Turn(1, 0, rows, 0.3))
    before, moved = state(of), []
    for _ in range(100):
        step(turn, *nothing, 0.3)
        after = state(of)
        moved.append((after - before).double().numpy())
        before = after
    std = 0.3 * 1.7 * 0.5 / expected
    assert stats.kstest(np.concatenate(moved) / std, "norm").pvalue > 1e-3
    # Steps are independent of one another.
    assert abs(np.corrcoef(moved[0], moved[1])[0, 1]) < 4 / np.sqrt(len(moved[0]))


def test_noise_is_added_to_the_sum() -> None:
    x, y = data(9)
    found = []
    for noise in (0.0, 2.0):
        for batch in ((x, y), (x[:0], y[:0])):
            of = worker(noise)
            step(of.turn(Turn(1, 0, 50, 0.1)), *batch, 0.1)
            found.append(state(of))
    plain, nothing, noisy, noise = found
    torch.testing.assert_close(noisy - plain, noise - nothing, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 10, "full"])
def test_a_client_of_one_row(batch: int | str) -> None:
    of = worker(0.5, batch=batch, epochs=4)
    before = state(of)
    turn = of.turn(Turn(1, 0, 1, 0.1))
    turn.train(*data(1))
    moved = state(of) - before
    assert moved.isfinite().all()
    assert moved.abs().max() > 0


# ---- draws ----


def trained(of: DpSgd, turn: Turn) -> torch.Tensor:
    """The state after a client's turn, which starts from the first weights."""
    torch.manual_seed(0)
    of.gradients.model.load_state_dict(models.build("softmax", SHAPE, 10).state_dict())
    private = of.turn(turn)
    private.train(*data(turn.rows))
    return state(of)


def test_draws_belong_to_seed_round_and_client() -> None:
    first = trained(worker(), Turn(1, 0, 30, 0.1))
    assert torch.equal(first, trained(worker(), Turn(1, 0, 30, 0.1)))
    others = [
        trained(worker(), Turn(2, 0, 30, 0.1)),
        trained(worker(), Turn(1, 1, 30, 0.1)),
        trained(worker(seed=1), Turn(1, 0, 30, 0.1)),
        trained(worker(noise="system"), Turn(1, 0, 30, 0.1)),
        trained(worker(noise="system"), Turn(1, 0, 30, 0.1)),
    ]
    for k, other in enumerate(others):
        assert not any(torch.equal(other, another) for another in [first, *others[:k]])


@pytest.mark.parametrize("noise", ["seed", "system"])
def test_a_turn_that_is_repeated_tells_nothing_new(noise: str) -> None:
    of = worker(noise=noise)
    assert torch.equal(trained(of, Turn(4, 2, 30, 0.1)), trained(of, Turn(4, 2, 30, 0.1)))


def test_the_rows_and_the_default_generator_are_left_alone() -> None:
    x, y = data(30)
    kept, of = x.clone(), worker()
    generator = torch.get_rng_state()
    turn = of.turn(Turn(1, 0, 30, 0.1))
    turn.train(x, y)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_noisy_gradient_goes_the_way_of_any_other() -> None:
    """What FedProx, SCAFFOLD and weight decay add depends on models alone, which have noise."""
    descent = Descent(momentum=0.5, decay=0.3, drifts=True)
    of = worker(0.0, batch="full", clip=1e6, descent=descent, epochs=2)
    of.trainer.step.begin([torch.ones_like(p) for p in of.gradients.parameters])
    x, y = data(20)
    of.turn(Turn(1, 0, 20, 0.1)).train(x, y)
    torch.manual_seed(0)
    reference = models.build("softmax", SHAPE, 10)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.5, weight_decay=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        models.task_loss(10)(reference(x), y).backward()
        for p in reference.parameters():
            assert p.grad is not None
            p.grad += 1
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.testing.assert_close(state(of), expected, rtol=1e-4, atol=1e-6)
