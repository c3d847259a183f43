"""Every strategy written to be read: plain PyTorch, named tensors, float64 at the server.

From the papers alone: nothing is flat, in fixed point, or shared with the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn

from fedmpi.config import FederatedConfig
from fedmpi.models import task_loss
from tests.federated.reference import Rows, batches, seeds_of

Tensors = dict[str, torch.Tensor]
Correction = Callable[[str, torch.Tensor], torch.Tensor]
"""What is added to the gradient of a parameter, from its name and its value before the step."""


@dataclass
class Server:
    """What a strategy remembers."""

    m: Tensors = field(default_factory=dict)
    v: Tensors = field(default_factory=dict)
    c: Tensors = field(default_factory=dict)
    clients: dict[int, Tensors] = field(default_factory=dict)


def train(
    model: nn.Module,
    rows: Rows,
    how: FederatedConfig,
    lr: float,
    classes: int,
    seeds: Mapping[str, int],
    correction: Correction,
) -> float:
    """Local SGD in place; returns the number of steps, or |a_k| of FedNova with momentum."""
    model.train()
    steps, factor = 0.0, 0.0
    moving = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in batches(rows, how, seeds):
        model.zero_grad()
        task_loss(classes)(model(x), y).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                v = how.momentum * moving[name] + p.grad + how.weight_decay * p
                moving[name] = v + correction(name, p)
                p -= lr * moving[name]
        factor = how.momentum * factor + 1
        steps += factor
    return steps


def play(
    kind: str,
    model: nn.Module,
    clients: Mapping[int, Rows],
    cohorts: Sequence[Sequence[int]],
    how: FederatedConfig,
    classes: int,
    seed: int,
    options: Mapping[str, float],
) -> Server:
    """One round for each cohort, in place."""
    server = Server()
    names = [name for name, _ in model.named_parameters()]
    for number, cohort in enumerate(cohorts, start=1):
        lr = how.lr * how.lr_decay ** (number - 1)
        start = {name: t.detach().double() for name, t in model.state_dict().items()}
        deltas: list[Tensors] = []
        steps: list[float] = []
        changes: list[Tensors] = []
        for client in cohort:
            mine = server.clients.get(client, {})

            def correction(
                name: str, p: torch.Tensor, mine: Tensors = mine, start: Tensors = start
            ) -> torch.Tensor:
                if kind == "fedprox":
                    return options["mu"] * (p - start[name].to(p.dtype))
                if kind == "scaffold" and name in server.c:
                    return (server.c[name] - mine.get(name, 0.0)).to(p.dtype)
                return torch.zeros_like(p)

            local = deepcopy(model)
            seeds = seeds_of(seed, number, client)
            steps.append(train(local, clients[client], how, lr, classes, seeds, correction))
            state = local.state_dict()
            deltas.append({name: state[name].double() - start[name] for name in state})
            if kind == "scaffold":
                new = {
                    name: mine.get(name, 0.0)
                    - server.c.get(name, 0.0)
                    - deltas[-1][name] / (steps[-1] * lr)
                    for name in names
                }
                changes.append({name: new[name] - mine.get(name, 0.0) for name in names})
                server.clients[client] = new
        p = torch.tensor([len(clients[c][1]) for c in cohort], dtype=torch.float64)
        p /= p.sum()
        tau = torch.tensor(steps, dtype=torch.float64)
        # Of the model's buffers the mean is taken with the weights that the updates have.
        weights = {"scaffold": torch.ones_like(p), "fednova": p / tau}.get(kind, p)
        weights = weights / weights.sum()
        for name, tensor in model.state_dict().items():
            mean = sum(w * delta[name] for w, delta in zip(weights, deltas, strict=True))
            if name in names:
                mean = server_step(kind, server, name, mean, options)
                if kind == "fednova":
                    mean = (p * tau).sum() * sum(
                        p_k * delta[name] / tau_k
                        for p_k, tau_k, delta in zip(p, tau, deltas, strict=True)
                    )
            elif not tensor.is_floating_point():
                mean = mean.round()
            tensor.copy_(start[name] + mean)
        for name in names if kind == "scaffold" else ():
            change = sum(change[name] for change in changes) / len(cohort)
            server.c[name] = server.c.get(name, 0.0) + len(cohort) / len(clients) * change
    return server


def server_step(
    kind: str, server: Server, name: str, delta: torch.Tensor, options: Mapping[str, float]
) -> torch.Tensor:
    """What is added to a parameter."""
    zeros = torch.zeros_like(delta)
    if kind == "fedavgm":
        server.v[name] = options["momentum"] * server.v.get(name, zeros) + delta
        return options["server_lr"] * server.v[name]
    if kind in ("fedadam", "fedyogi", "fedadagrad"):
        beta1, tau = options["beta1"], options["tau"]
        m = server.m[name] = beta1 * server.m.get(name, zeros) + (1 - beta1) * delta
        v = server.v.get(name, zeros + tau**2)
        if kind == "fedadam":
            v = options["beta2"] * v + (1 - options["beta2"]) * delta**2
        elif kind == "fedyogi":
            v = v - (1 - options["beta2"]) * delta**2 * torch.sign(v - delta**2)
        else:
            v = v + delta**2
        server.v[name] = v
        return options["server_lr"] * m / (v.sqrt() + tau)
    if kind == "scaffold":
        return options["server_lr"] * delta
    return delta
