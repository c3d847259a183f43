"""Loss and accuracy of a model on some rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fedmpi.models import task_loss

BATCH = 1000
"""Rows of one forward; fixed, so that the sums have the same bits everywhere."""


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on some rows.

    Attributes:
        loss: mean cross-entropy, or mean squared error for regression.
        metric: accuracy, 0 to 1; for regression R^2, at most 1, NaN where all targets are equal.
    """

    loss: float
    metric: float


def metric_name(classes: int) -> str:
    """What `Evaluation.metric` is: "accuracy", or "r2" for regression (classes 0)."""
    return "accuracy" if classes else "r2"


@torch.inference_mode()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, classes: int) -> Evaluation:
    """Evaluates in eval mode, in batches of fixed size, sums in float64.

    Args:
        model: left in eval mode.
        x: float32 [n, ...], on the model's device, n at least 1.
        y: int64 [n], or float32 [n] for regression.
        classes: 0 for regression.
    """
    model.eval()
    loss_of = task_loss(classes)
    loss = hits = 0.0
    for bx, by in zip(x.split(BATCH), y.split(BATCH), strict=True):
        output = model(bx)
        loss += float(loss_of(output, by)) * len(by)
        if classes:
            hits += int((output.argmax(1) == by).sum())
    if classes:
        return Evaluation(loss / len(y), hits / len(y))
    spread = float((y.double() - y.double().mean()).square().sum())
    return Evaluation(loss / len(y), 1 - loss / spread if spread else float("nan"))
