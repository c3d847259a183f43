"""Training on shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmpi.config.checks import require, require_choice

Loss = Literal["auto", "cross_entropy", "bce", "mse"]
Activation = Literal["model", "relu", "polynomial", "square"]
Pooling = Literal["model", "average", "max"]


@dataclass(frozen=True)
class SecureConfig:
    """Training on shares, which `federated.mode = "encrypted"` asks for."""

    parties: tuple[int, ...] = ()
    """Ranks of the workers that hold the shares, at least two; none named: all workers."""
    bits: int = 16
    """Fractional bits of the fixed-point numbers."""
    loss: Loss = "auto"
    """auto: cross-entropy, or for regression the mean squared error; bce: one logistic regression
    for each class; mse: of the outputs and one-hot labels."""
    optimizer: str = "SGD"
    """A class of torch.optim; it gets the learning rate, and [federated] momentum and weight_decay
    if they are not 0."""
    activation: Activation = "model"
    """What stands in place of ReLU, sigmoid and tanh: a polynomial of degree 3 near the sigmoid,
    or the square; model: nothing does."""
    pooling: Pooling = "model"
    """What stands in place of the model's 2-d pooling; model: nothing does."""
    learns: Literal["model", "metric"] = "model"
    """What the owner learns: the outputs on its held-out rows, the training loss and at the end
    the model; or the metric on its held-out rows and nothing else."""
    clear: bool = False
    """Train the same batches in the clear instead, to compare: the owner fetches all rows."""

    def __post_init__(self) -> None:
        ranks = list(self.parties)
        require(
            0 not in ranks, "parties", ranks, "workers, rank 0 is the owner, who holds no share"
        )
        require(
            len(ranks) != 1 and len(set(ranks)) == len(ranks) and min(ranks, default=1) > 0,
            "parties",
            ranks,
            "the ranks of at least 2 different workers, or none for all",
        )
        require(8 <= self.bits <= 24, "bits", self.bits, "8 to 24 fractional bits")
        require_choice("loss", self.loss, Loss)
        require_choice("activation", self.activation, Activation)
        require_choice("pooling", self.pooling, Pooling)
        require_choice("learns", self.learns, Literal["model", "metric"])
