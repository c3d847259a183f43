"""Federated averaging (McMahan et al. 2017, Algorithm 1) with nothing but pointers.

With one client for each worker this is what `fedmpi run` computes, with the same draws:

    python -m fedmpi run --path DIR --model 2nn --rounds 5 --fraction 1 --epochs 1
        --batch-size 50 --lr 0.1 --seed 0

The model and the number of rounds may follow the script's name: 03_averaging.py softmax 3
"""

import sys

import torch
from torch import nn
from torch.nn import functional

import fedmpi
from fedmpi import models
from fedmpi.federated.seeds import derive

MODEL = sys.argv[1] if len(sys.argv) > 1 else "2nn"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
SEED, EPOCHS, BATCH, LR = 0, 1, 50, 0.1


def train(
    worker: fedmpi.RemoteWorker,
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    orders: torch.Generator,
) -> None:
    """Local epochs on a worker: plain PyTorch, and nothing here waits for it."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for _ in range(EPOCHS):
        order = worker.send(torch.randperm(len(x), generator=orders))
        for bx, by in zip(x[order].split(BATCH), y[order].split(BATCH), strict=True):
            optimiser.zero_grad()
            functional.cross_entropy(model(bx), by).backward()
            optimiser.step()


def average(model: nn.Module, trained: list[nn.Module], weights: list[float]) -> None:
    """Adds the weighted mean of the workers' updates to the model; they are fetched here.

    In float64, so that almost nothing is lost to rounding before the last step.
    """
    with torch.no_grad():
        states = zip(*(fedmpi.get(local).parameters() for local in trained), strict=True)
        for parameter, local in zip(model.parameters(), states, strict=True):
            updates = [(trained_there - parameter).double() for trained_there in local]
            mean = sum(w * update for w, update in zip(weights, updates, strict=True))
            parameter.copy_(parameter + mean)


def accuracy(model: nn.Module) -> float:
    """On the rows of all workers; only their numbers of right answers are fetched."""
    with torch.no_grad():
        right = [
            (worker.send(model)(x).argmax(1) == y).sum()
            for worker, x, y in zip(workers, rows, labels, strict=True)
        ]
    return sum(count.item() for count in right) / sum(map(len, rows))


workers = fedmpi.workers()
rows = [worker.search("#mnist5k", "#train", "#x")[0] for worker in workers]
labels = [worker.search("#mnist5k", "#train", "#y")[0] for worker in workers]
clients = [worker.search("#mnist5k", "#train", "#client")[0].tolist()[0] for worker in workers]
weights = [len(x) / sum(map(len, rows)) for x in rows]

torch.manual_seed(derive(SEED, "model"))
model = models.build(MODEL, row_shape=rows[0].shape[1:], classes=10)
print(f"at the start   accuracy {accuracy(model):.1%}")

for number in range(1, ROUNDS + 1):
    trained = []
    for worker, x, y, client in zip(workers, rows, labels, clients, strict=True):
        local = worker.send(model)
        orders = torch.Generator().manual_seed(derive(SEED, "shuffle", number, client))
        train(worker, local, x, y, orders)
        trained.append(local)
    # By now all workers are at work; the first wait is for the first of them.
    average(model, trained, weights)
    print(f"after round {number}  accuracy {accuracy(model):.1%}")
