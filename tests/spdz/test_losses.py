"""Losses and their derivatives: public and secret targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.against import compare, numbers

Workers = Sequence[RemoteWorker]


CLASSES = torch.tensor([3, 0, 9, 3, 7])
IGNORED = torch.tensor([-100, 0, 9, 3, 7])
WEIGHT = torch.linspace(0.5, 2, 10, dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_differences(parties: Workers, name: str, reduction: str) -> None:
    target = numbers(4, 5, seed=2)
    loss = getattr(F, name)
    compare(parties, lambda x, t: loss(x, t, reduction=reduction), numbers(4, 5) * 2, target)
    compare(parties, lambda x: loss(x, target, reduction=reduction), numbers(4, 5) * 2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_of_public_classes(parties: Workers, reduction: str) -> None:
    compare(parties, lambda x: F.cross_entropy(x, CLASSES, reduction=reduction), numbers(5, 10) * 3)


@pytest.mark.parametrize(
    "more", [{"weight": WEIGHT}, {"label_smoothing": 0.1}, {"ignore_index": 3}], ids=str
)
def test_options_of_cross_entropy(parties: Workers, more: dict[str, Any]) -> None:
    compare(parties, lambda x: F.cross_entropy(x, CLASSES, **more), numbers(5, 10) * 3)


def test_ignored_classes(parties: Workers) -> None:
    compare(parties, lambda x: F.cross_entropy(x, IGNORED), numbers(5, 10) * 3)


def test_secret_classes_and_probabilities(parties: Workers) -> None:
    compare(parties, F.cross_entropy, numbers(5, 10) * 3, CLASSES)
    compare(parties, F.cross_entropy, numbers(5, 10) * 3, numbers(5, 10, seed=2).softmax(1))


def test_classes_of_pixels(parties: Workers) -> None:
    classes = torch.arange(24).view(2, 3, 4) % 5
    compare(parties, lambda x: F.cross_entropy(x, classes), numbers(2, 5, 3, 4))


def test_binary_cross_entropy(parties: Workers) -> None:
    target = (numbers(20, seed=2) > 0).double()
    compare(parties, F.binary_cross_entropy, numbers(20).sigmoid(), target)
    compare(parties, lambda x: F.binary_cross_entropy(x, target), numbers(20).sigmoid())
    compare(parties, F.binary_cross_entropy_with_logits, numbers(20) * 5, target)
    weight = torch.tensor(2.0, dtype=torch.float64)
    compare(
        parties,
        lambda x: F.binary_cross_entropy_with_logits(x, target, pos_weight=weight),
        numbers(20) * 5,
    )


def test_divergence(parties: Workers) -> None:
    target = numbers(4, 6, seed=2).softmax(1)
    compare(
        parties, lambda x, t: F.kl_div(x.log_softmax(1), t, reduction="sum"), numbers(4, 6), target,
        error=2e-3,
    )  # fmt: skip
