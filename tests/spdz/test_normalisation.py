"""Normalisation and dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.against import compare, exact, numbers, revealed

Workers = Sequence[RemoteWorker]


def test_layers(parties: Workers) -> None:
    compare(
        parties, lambda x, w, b: F.layer_norm(x, (8,), w, b), numbers(5, 8), numbers(8), numbers(8)
    )
    compare(parties, lambda x: F.layer_norm(x, (4, 8)), numbers(5, 4, 8))


def test_groups(parties: Workers) -> None:
    compare(
        parties,
        lambda x, w, b: F.group_norm(x, 3, w, b),
        numbers(4, 6, 3, 3),
        numbers(6),
        numbers(6),
    )


def test_batches(parties: Workers) -> None:
    compare(
        parties,
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        numbers(16, 6), numbers(6), numbers(6),
    )  # fmt: skip


def test_instances(parties: Workers) -> None:
    compare(
        parties,
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        numbers(4, 6, 3, 3), numbers(6), numbers(6),
        gradients=1e-3,  # a smallest deviation of 0.45 multiplies errors by 5
    )  # fmt: skip


@pytest.mark.parametrize(("deviation", "error"), [(0.02, 0.03), (0.1, 0.002), (2500.0, 0.01)])
def test_small_and_large_deviations(parties: Workers, deviation: float, error: float) -> None:
    x = exact(numbers(8, 33) * deviation)
    for function in (
        lambda x: F.layer_norm(x, (33,)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.group_norm(x, 3),
    ):
        found = revealed(function(share(x, *parties)))
        assert torch.allclose(found, function(x), rtol=0, atol=error)


@pytest.mark.parametrize(
    ("rows", "deviation", "error"), [(70_000, 300.0, 5e-4), (1000, 6000.0, 5e-3)]
)
def test_sums_of_many_large_squares(
    parties: Workers, rows: int, deviation: float, error: float
) -> None:
    x = exact(numbers(rows, 1) * deviation)
    found = F.batch_norm(share(x, *parties), None, None, training=True)
    want = F.batch_norm(x, None, None, training=True)
    assert torch.allclose(revealed(found), want, rtol=0, atol=error)


MODULES: list[tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = [
    (lambda: torch.nn.BatchNorm1d(6), (16, 6)),
    (lambda: torch.nn.BatchNorm2d(3), (4, 3, 5, 5)),
    (lambda: torch.nn.LayerNorm(6), (4, 6)),
    (lambda: torch.nn.GroupNorm(2, 4), (3, 4, 5)),
    (lambda: torch.nn.RMSNorm(6), (4, 6)),
]


@pytest.mark.parametrize("which", range(len(MODULES)))
def test_modules_in_training_and_afterwards(parties: Workers, which: int) -> None:
    make, shape = MODULES[which]
    module = make().double()
    shared = share(module, *parties)
    x = exact(numbers(*shape))
    for _ in range(2):
        want, found = module(x), shared(share(x, *parties))
    assert torch.allclose(revealed(found), want.detach(), rtol=0, atol=5e-4)
    for ours, theirs in zip(
        shared.state_dict().values(), module.state_dict().values(), strict=True
    ):
        assert torch.allclose(revealed(ours).double(), theirs.double(), rtol=0, atol=1e-4)
    module.eval()
    shared.eval()
    found = shared(share(x, *parties))
    assert torch.allclose(revealed(found), module(x).detach(), rtol=0, atol=5e-4)


def test_dropout_follows_the_seed_and_is_the_same_in_the_backward_pass(parties: Workers) -> None:
    x = share(torch.ones(500, dtype=torch.float64), *parties).requires_grad_()
    torch.manual_seed(3)
    y = F.dropout(x, 0.3)
    kept = revealed(y)
    assert 0.6 < float((kept > 0).double().mean()) < 0.8
    assert torch.allclose(kept[kept > 0], torch.tensor(1 / 0.7, dtype=torch.float64), atol=1e-4)
    (y * y).sum().backward()
    assert torch.allclose(revealed(x.grad), 2 * kept / 0.7, rtol=0, atol=1e-4)
    torch.manual_seed(3)
    assert torch.equal(revealed(F.dropout(x, 0.3)), kept)
