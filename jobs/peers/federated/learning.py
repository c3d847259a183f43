"""Models, a client's epoch in plain PyTorch, and evaluation.

What a system has of its own, as most have the client's loop, is not taken from here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import BATCH, SEED, Array


def build(model: str) -> nn.Module:
    """A model of rows [n, 784], the same first weights every time."""
    torch.manual_seed(SEED)
    if model == "softmax":
        return nn.Sequential(nn.Linear(784, 10))
    if model == "2nn":
        return nn.Sequential(
            nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def tensors(rows: tuple[Array, Array]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows[0]), torch.from_numpy(rows[1])


def train_epoch(model: nn.Module, x: Tensor, y: Tensor, lr: float, seed: int) -> None:
    """One epoch of SGD in place, as in FedMPI's other benchmarks: tensors, no DataLoader."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for rows in order.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


class Evaluation:
    """The accuracy on the held-out rows, in batches of 1,000."""

    def __init__(self, held_out: tuple[Array, Array]) -> None:
        self._x, self._y = tensors(held_out)

    def accuracy(self, model: nn.Module) -> float:
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            batches = zip(self._x.split(1000), self._y.split(1000), strict=True)
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
        model.train(was_training)
        return right / len(self._y)
