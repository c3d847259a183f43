"""ClientUpdate of McMahan et al. 2017, Algorithm 1: a client's local epochs of SGD."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def local_sgd(
    model: nn.Module,
    loss_of: Loss,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epochs: int,
    batch_size: int | None,
    smallest_batch: int = 1,
    lr: float,
    seed: int,
) -> float:
    """Trains the model in place on one client's rows.

    Args:
        model: its parameters are changed in place.
        loss_of: mean loss of a batch from (output, y).
        x: float32 [n, ...].
        y: int64 or float32 [n].
        epochs: E; every epoch visits all rows once, in a new order.
        batch_size: B, the last batch of an epoch may be smaller; None: all rows at once.
        smallest_batch: a last batch of fewer rows is joined to the one before.
        lr: learning rate.
        seed: of the orders.

    Returns:
        Mean loss over all rows and epochs, as met during training.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = len(x)
    step = min(batch_size or rows, rows)
    sizes = [step] * (rows // step) + [rows % step] * (rows % step > 0)
    if sizes[-1] < smallest_batch and len(sizes) > 1:
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    orders = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for _ in range(epochs):
        if len(sizes) == 1:
            batches = [(x, y)]
        else:
            # One gather an epoch: the batches are then views of neighbouring rows.
            order = torch.randperm(rows, generator=orders).to(x.device)
            batches = list(zip(x[order].split(sizes), y[order].split(sizes), strict=True))
        for bx, by in batches:
            loss = loss_of(model(bx), by)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
                torch._foreach_add_([p for p, _ in used], [g for _, g in used], alpha=-lr)
                total += loss.detach() * len(bx)
    return float(total) / (rows * epochs)
