"""Loss and accuracy of a model on some rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fedmpi.data.shard import Batch
from fedmpi.models import Loss, task_loss

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


def batches(x: torch.Tensor, y: torch.Tensor) -> Iterator[Batch]:
    """Rows that are in memory, as `evaluate` takes them."""
    return zip(x.split(BATCH), y.split(BATCH), strict=True)


@torch.inference_mode()
def evaluate(
    model: nn.Module, blocks: Iterable[Batch], classes: int, device: torch.device
) -> Evaluation:
    """Evaluates in eval mode, one block after another, sums in float64.

    Args:
        model: left in eval mode, on the device.
        blocks: x float32 [b, ...] and y int64, or float32 for regression, [b]; blocks of
            BATCH rows, of which only the last may have fewer; at least one.
        classes: 0 for regression.
        device: to which each block goes in its turn.
    """
    model.eval()
    outputs = ((model(x.to(device)), y.to(device)) for x, y in blocks)
    return score(outputs, classes, task_loss(classes))


@torch.inference_mode()
def score(outputs: Iterable[Batch], classes: int, loss_of: Loss) -> Evaluation:
    """As `evaluate`, of outputs that are known, each with its y; the loss is that of `loss_of`."""
    rows = hits = 0
    loss = total = squares = 0.0
    origin: torch.Tensor | None = None
    for output, y in outputs:
        rows += len(y)
        loss += float(loss_of(output, y)) * len(y)
        if classes:
            hits += int((output.argmax(1) == y).sum())
        else:
            # Counted from one of the targets, the sums do not cancel, however far they are from 0.
            targets = y.double()
            origin = targets[0] if origin is None else origin
            total += float((targets - origin).sum())
            squares += float((targets - origin).square().sum())
    if classes:
        return Evaluation(loss / rows, hits / rows)
    spread = squares - total**2 / rows
    return Evaluation(loss / rows, 1 - loss / spread if spread else float("nan"))
