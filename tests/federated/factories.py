"""Models as a person would write them: counters, dropout, tied weights, several dtypes, masks."""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """A block of a small ResNet, with batch normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()


def small_resnet(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    width = 4
    return nn.Sequential(
        nn.Conv2d(row_shape[0], width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        Residual(width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def dropout(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    rows = torch.Size(row_shape).numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(rows, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 32),
        nn.LayerNorm(32),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, classes),
    )


class Mixed(nn.Module):
    """A state of many dtypes, a tied weight, an unused parameter and a flag."""

    def __init__(self, rows: int, classes: int) -> None:
        super().__init__()
        self.encode = nn.Linear(rows, 16)
        self.decode = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16, bias=False)
        self.again.weight = self.decode.weight
        self.scale = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))
        self.shift = nn.Parameter(torch.zeros(16, dtype=torch.float64))
        self.unused = nn.Parameter(torch.full((3,), 7.0))
        self.frozen = nn.Parameter(torch.full((2,), 5.0), requires_grad=False)
        self.head = nn.Linear(16, classes)
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("started", torch.tensor([False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += len(x)
            self.started[0] = True
        x = self.encode(x.flatten(1)).relu()
        x = self.again(self.decode(x)) * self.scale.float() + self.shift.float()
        return self.head(x)


def mixed(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Mixed(torch.Size(row_shape).numel(), classes)


class RandomFeatures(nn.Module):
    """Random features that are no part of the state, and a mask that is infinite."""

    def __init__(self, rows: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(rows, 24), persistent=False)
        mask = torch.zeros(24)
        mask[::5] = -torch.inf
        self.register_buffer("mask", mask)
        self.register_buffer("stamp", torch.tensor(2**60 + 1))
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x.flatten(1) @ self.features + self.mask).softmax(1) * 24)


def random_features(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    return RandomFeatures(torch.Size(row_shape).numel(), classes)


def batch_norm(row_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Refuses to train on a batch of one row."""
    rows = torch.Size(row_shape).numel()
    layers = nn.Linear(rows, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes)
    return nn.Sequential(nn.Flatten(), *layers)
