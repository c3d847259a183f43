"""A model that moves: it is trained where the rows are, one worker after another."""

import torch
from torch import nn
from torch.nn import functional

import fedmpi

ROWS, BATCH, ROUNDS = 400, 20, 3

workers = fedmpi.workers()

# Each worker has loaded its own shard; a slice of it is as large as this lesson needs.
data = []
for worker in workers:
    [x] = worker.search("#mnist5k", "#train", "#x")
    [y] = worker.search("#mnist5k", "#train", "#y")
    data.append((x[:ROWS], y[:ROWS]))


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """On a worker's rows; only this number is fetched."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
model = workers[0].send(model)
print(f"at the start   accuracy {accuracy(model, *data[0]):.1%}")

for number in range(1, ROUNDS + 1):
    for place, (x, y) in enumerate(data):
        # The optimiser is made where the model is: its parameters are that worker's.
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for bx, by in zip(x.split(BATCH), y.split(BATCH), strict=True):
            optimiser.zero_grad()
            functional.cross_entropy(model(bx), by).backward()
            optimiser.step()
        following = (place + 1) % len(workers)
        if len(workers) > 1:
            model = fedmpi.move(model, workers[following])
    # On the first worker's rows, which the model has not seen for the longest time.
    print(f"after round {number}  accuracy {accuracy(model, *data[0]):.1%}")

trained = fedmpi.get(model)
print("parameters:", sum(p.numel() for p in trained.parameters()))
