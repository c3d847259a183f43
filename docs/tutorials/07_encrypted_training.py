"""Encrypted training: three workers train one model on all their rows, and nobody sees a row.

What `fedmpi run --config jobs/encrypted-mlp.toml` does, written by hand with one batch size:
each worker shares its own rows and labels, a step is a plan over shares, and the owner learns
what the workers accept: here the model, and nothing on the way to it.
"""

import torch
from torch import nn
from torch.nn import functional

import fedmpi

EVERY, EPOCHS, BATCH, LR, MOMENTUM = 3, 5, 80, 0.5, 0.9

parties = fedmpi.workers()

rows, labels = [], []
for worker in parties:
    [x] = worker.search("#mnist5k", "#train", "#x")
    [y] = worker.search("#mnist5k", "#train", "#y")
    one_hot = y[::EVERY].unsqueeze(1) == worker.send(torch.arange(10))
    # Rows are ordered by label, hence every third one. Private: whatever is computed from them
    # does not leave the workers either.
    rows.append(x[::EVERY].flatten(1).clone().make_private())
    labels.append(one_hot.float().make_private())

xs, ys = fedmpi.share(rows, *parties), fedmpi.share(labels, *parties)
print(f"{len(xs)} rows are shared among {len(parties)} workers")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
shared = fedmpi.share(model, *parties)
optimizer = torch.optim.SGD(shared.parameters(), lr=LR, momentum=MOMENTUM)


@fedmpi.plan
def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Ordinary PyTorch; recorded once, it is one command to the parties and the dealer."""
    optimizer.zero_grad()
    functional.mse_loss(model(x), y).backward()
    optimizer.step()


@fedmpi.plan
def trained(model: nn.Module) -> list[torch.Tensor]:
    """What the workers accept to give away."""
    with torch.no_grad():
        return [parameter.clone() for parameter in model.parameters()]


# Which rows make a batch is public, what is in them is not.
for _ in range(EPOCHS):
    for at in torch.randperm(len(xs)).split(BATCH):
        step(shared, optimizer, xs[at], ys[at])

try:
    fedmpi.get(shared)
    print("the owner has the model")
except fedmpi.errors.RemoteError:
    print("the owner does not get the model: it comes of private rows")

accepted = trained.record(shared)
for worker in parties:
    worker.accept(accepted)
with torch.no_grad():
    for parameter, values in zip(model.parameters(), trained(shared), strict=True):
        parameter.copy_(values.reveal())

# The model of the owner, on rows of the first worker that were not trained on.
[x] = parties[0].search("#mnist5k", "#train", "#x")
[y] = parties[0].search("#mnist5k", "#train", "#y")
others, wanted = x[1::EVERY].flatten(1).get(), y[1::EVERY].get()
with torch.no_grad():
    hits = (model(others).argmax(1) == wanted).float().mean().item()
print(f"on other rows the model is right {'more' if hits > 0.8 else 'less'} than 80 % of the time")
