"""Accepted plans: each worker's rows stay private, and only what it agreed to comes out.

The owner never sees a row, nor what one of them alone gives. What a plan returns is what a worker
lets go, so a worker reads the plan first.
"""

import torch
from torch import nn
from torch.nn import functional

import fedmpi

ROWS, ROUNDS, LR = 500, 4, 0.1

workers = fedmpi.workers()

# Each worker keeps its shard to itself; whatever is computed from it is private too.
rows, labels = [], []
for worker in workers:
    [x] = worker.search("#mnist5k", "#train", "#x")
    [y] = worker.search("#mnist5k", "#train", "#y")
    rows.append(x[:ROWS].flatten(1).make_private())
    labels.append(y[:ROWS].make_private())


def refused(what: str, pointer: torch.Tensor) -> None:
    """Tries to fetch it."""
    try:
        fedmpi.get(pointer)
        print(f"{what}: fetched")
    except fedmpi.errors.RemoteError:
        print(f"{what}: refused")


@fedmpi.plan
def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of the mean loss over all rows."""
    loss = functional.cross_entropy(model(x), y)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@fedmpi.plan
def right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How many rows the model has right."""
    return (model(x).argmax(1) == y).sum()


@fedmpi.plan
def first_row(x: torch.Tensor) -> torch.Tensor:
    """What no worker would accept."""
    return x[0] * 1.0


torch.manual_seed(0)
model = nn.Linear(784, 10)
copies = [worker.send(model) for worker in workers]
places = list(zip(copies, rows, labels, strict=True))

# Nothing comes out as it is: no row, and no gradient.
refused("a row", rows[0][0])
refused("gradients, before they are accepted", gradients(*places[0])[1])

# A worker reads what would run, as Python, operator by operator, and accepts that program.
print(gradients.code(*places[0]))
for worker, place in zip(workers, places, strict=True):
    worker.accept(gradients.record(*place))
    worker.accept(right.record(*place))

# Another program is another matter.
print(first_row.code(rows[0]))
refused("a row by a plan", first_row(rows[0]))


def accuracy() -> float:
    """Over all workers' rows: only counts come out."""
    counts = [right(*place) for place in places]
    return sum(count.item() for count in counts) / (ROWS * len(workers))


# Gradient descent on all rows: the workers' mean gradients come out, and are averaged here.
print(f"at the start   accuracy {accuracy():.1%}")
for number in range(1, ROUNDS + 1):
    found = [gradients(*place) for place in places]
    with torch.no_grad():
        for parameter, *parts in zip(model.parameters(), *found, strict=True):
            parameter -= LR * sum(part.get() for part in parts) / len(workers)
        for worker, there in zip(workers, copies, strict=True):
            for parameter, old in zip(model.parameters(), there.parameters(), strict=True):
                old.copy_(worker.send(parameter))
    print(f"after round {number}  accuracy {accuracy():.1%}")

# A model that makes a step on private rows by itself is as private as they are.
local, x, y = places[0]
optimiser = torch.optim.SGD(local.parameters(), lr=LR)
functional.cross_entropy(local(x), y).backward()
optimiser.step()
refused("a model trained without a plan", local.weight)
