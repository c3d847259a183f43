"""Losses by name, of outputs and targets that may be shared: labels are one-hot rows there."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedmpi.config import Loss as Name
from fedmpi.config import require
from fedmpi.models import Loss

_OF_CLASSES: dict[str, Loss] = {
    "cross_entropy": functional.cross_entropy,
    "bce": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
}


def loss_on_targets(name: Name, classes: int) -> Loss:
    """The loss of outputs and targets, both float [n, classes], or [n] for a regression.

    Raises:
        UsageError: a loss of classes for a regression.
    """
    if classes:
        return _OF_CLASSES["cross_entropy" if name == "auto" else name]
    require(name in ("auto", "mse"), "loss", name, "mse, since the data has no classes")
    return functional.mse_loss


def loss_on_labels(name: Name, classes: int) -> Loss:
    """The same loss of outputs and labels, int64 [n]."""
    loss = loss_on_targets(name, classes)
    return (lambda output, y: loss(output, targets(y, classes))) if classes else loss


def targets(y: Tensor, classes: int) -> Tensor:
    """Labels as one-hot rows, float32 [n, classes]; the targets of a regression stay."""
    return functional.one_hot(y, classes).float() if classes else y
