"""Federated averaging written to be read: plain PyTorch, a copy for each client, float64 means.

Slow, and without shards, ranks, commands or fixed point. The product must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import nn

from fedmpi.config import FederatedConfig
from fedmpi.federated.seeds import derive
from fedmpi.models import task_loss

Rows = tuple[torch.Tensor, torch.Tensor]


def batches(
    rows: Rows, how: FederatedConfig, seeds: Mapping[str, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of a client's local epochs, in the order that its seed gives."""
    x, y = rows
    batch = len(x) if how.batch_size == "full" else min(how.batch_size, len(x))
    orders = torch.Generator().manual_seed(seeds["shuffle"])
    for _ in range(how.epochs):
        order = torch.arange(len(x))
        if batch < len(x):
            order = torch.randperm(len(x), generator=orders)
        for chosen in order.split(batch):
            yield x[chosen], y[chosen]


def client_update(
    model: nn.Module,
    rows: Rows,
    how: FederatedConfig,
    lr: float,
    classes: int,
    seeds: Mapping[str, int],
) -> float:
    """ClientUpdate of McMahan et al. 2017: trains in place, returns the mean loss."""
    torch.manual_seed(seeds["dropout"])
    options = {"momentum": how.momentum, "weight_decay": how.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), lr, **options)
    total = 0.0
    model.train()
    for x, y in batches(rows, how, seeds):
        optimizer.zero_grad()
        loss = task_loss(classes)(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return total / (len(rows[1]) * how.epochs)


def seeds_of(seed: int, number: int, client: int) -> dict[str, int]:
    return {what: derive(seed, what, number, client) for what in ("shuffle", "dropout")}


def fed_avg(
    model: nn.Module,
    clients: Mapping[int, Rows],
    cohorts: Sequence[Sequence[int]],
    how: FederatedConfig,
    classes: int,
    seed: int,
) -> list[float]:
    """One round for each cohort, in place; returns the mean training loss of each."""
    losses = []
    for number, cohort in enumerate(cohorts, start=1):
        lr = how.lr * how.lr_decay ** (number - 1)
        examples = sum(len(clients[c][1]) for c in cohort)
        mean = {
            name: torch.zeros_like(t, dtype=torch.float64) for name, t in model.state_dict().items()
        }
        loss = 0.0
        for client in cohort:
            local = deepcopy(model)
            weight = len(clients[client][1]) / examples
            loss += weight * client_update(
                local, clients[client], how, lr, classes, seeds_of(seed, number, client)
            )
            for name, tensor in local.state_dict().items():
                mean[name] += weight * tensor.double()
        for name, tensor in model.state_dict().items():
            new = mean[name] if tensor.is_floating_point() else mean[name].round()
            tensor.copy_(new)
        losses.append(loss)
    return losses


def cyclic(
    model: nn.Module,
    clients: Mapping[int, Rows],
    cohorts: Sequence[Sequence[int]],
    how: FederatedConfig,
    classes: int,
    seed: int,
) -> None:
    """Each client trains on from where the one before it stopped."""
    for number, cohort in enumerate(cohorts, start=1):
        lr = how.lr * how.lr_decay ** (number - 1)
        for client in cohort:
            client_update(model, clients[client], how, lr, classes, seeds_of(seed, number, client))
