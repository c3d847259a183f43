"""Encrypted inference: one side has a model, another one has rows, and neither shows them.

The owner trains a network on rows that one worker has published. Another worker wants to know what
it says about rows of its own. Model and rows are shared among the workers; the answers are for
the one who asks.
"""

import torch
from torch import nn
from torch.nn import functional

import fedmpi

EVERY, EPOCHS, BATCH, LR = 6, 10, 50, 0.2

alice, bob, carol = parties = fedmpi.workers()


def rows_of(worker: fedmpi.RemoteWorker) -> tuple[torch.Tensor, torch.Tensor]:
    """A worker's own rows and labels; they stay there."""
    [x] = worker.search("#mnist5k", "#train", "#x")
    [y] = worker.search("#mnist5k", "#train", "#y")
    return x, y


# Alice has published her rows: the owner trains in the clear.
x, y = (pointer.get() for pointer in rows_of(alice))
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
for _ in range(EPOCHS):
    for at in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()

# Bob's rows are private: no command of the owner gets them out of his hands.
xs, ys = rows_of(bob)
xs, ys = xs[::EVERY].clone().make_private(), ys[::EVERY].clone()


@fedmpi.plan
def answers(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One command to all parties, however many operators the network has."""
    with torch.no_grad():
        return network(x)


shared = fedmpi.share(model, *parties)
before = fedmpi.traffic(*parties)
outputs = answers(shared, fedmpi.share(xs, *parties))
try:
    outputs.reveal()
    print("the owner has the answers")
except fedmpi.errors.RemoteError:
    print("the owner does not get the answers: they come of Bob's private rows")

# On Bob's rank they become numbers, and nowhere else. He tells how many are right.
told = outputs.reveal(to=bob).argmax(1)


@fedmpi.plan
def right(told: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What Bob accepts to tell."""
    return (told == y).sum()


bob.accept(right.record(told, ys))
print(f"right answers on Bob's rows: {right(told, ys).item() / len(ys):.0%}")

done = {t.operator: t for t in fedmpi.traffic(*parties)}
print(f"signs of {done['negative'].calls} layer, {done['negative'].openings} openings")
