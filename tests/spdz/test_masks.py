"""What was opened of a secret is forgotten when its shares are written, however that is done.

A mask that outlives a change would give wrong results; used for another value, it would also tell
the difference of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.cases import numbers

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]

X = numbers(4, 4)
Y = numbers(4, 4, seed=5)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with fedmpi.simulate(2) as found:
        yield found


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.reveal(), expected, atol=2**-10)  # type: ignore[attr-defined]


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add_ a number": lambda x, y: x.add_(1),
    "add_ a secret": lambda x, y: x.add_(y),
    "sub_": lambda x, y: x.sub_(y, alpha=2),
    "mul_": lambda x, y: x.mul_(y),
    "neg_": lambda x, y: x.neg_(),
    "zero_": lambda x, y: x.zero_(),
    "fill_": lambda x, y: x.fill_(2.5),
    "copy_": lambda x, y: x.copy_(y),
    "copy_ public": lambda x, y: x.copy_(Y),
    "relu_": lambda x, y: x.relu_(),
    "clamp_": lambda x, y: x.clamp_(-1, 1),
    "masked_fill_": lambda x, y: x.masked_fill_(y > 0, 3),
    "a row": lambda x, y: x[1].add_(y[0]),
    "a row of its transpose": lambda x, y: x.t()[1].add_(y[0]),
    "a column": lambda x, y: x[:, 1].mul_(2),
    "an element": lambda x, y: x[0, 0].fill_(7),
    "every second": lambda x, y: x[::2, ::2].sub_(1),
    "a diagonal": lambda x, y: x.diagonal().add_(1),
    "a split": lambda x, y: x.split(2)[1].mul_(-1),
    "an unbound row": lambda x, y: x.unbind()[2].zero_(),
    "a reshaped view": lambda x, y: x.view(-1)[3:9].neg_(),
    "a view of a view": lambda x, y: x[1:].t()[0].view(3, 1).add_(1),
    "a strided view": lambda x, y: x.as_strided((2, 2), (5, 1), 1).add_(1),
    "an unfolded view": lambda x, y: x.unfold(0, 2, 2)[0].add_(1),
    "what is detached": lambda x, y: x.detach().add_(1),
    "positions": lambda x, y: x.index_put_((torch.tensor([1, 3]),), y[:2]),
    "index_add_": lambda x, y: x.index_add_(0, torch.tensor([1, 1]), y[:2]),
    "scatter_": lambda x, y: x.scatter_(1, torch.tensor([[1], [2], [0], [3]]), y[:, :1]),
    "setitem": lambda x, y: x.__setitem__((slice(None), 1), y[2]),
}

KNOWN: list[Callable[[Tensor], object]] = [
    lambda x: x * x,
    lambda x: x.t() @ x,
    lambda x: x[1] * x[0],
    lambda x: x > 0,
    lambda x: x == 0,
    lambda x: torch.relu(x),
    lambda x: x.max(1),
]
"""What makes masks, signs and choices of x known."""


def seen(x: Tensor) -> list[Tensor]:
    """Everything that may use what is known of x, and of views of it."""
    return [
        x * x,
        x.t() @ x,
        x[1] * x[:, 1],
        x.view(-1)[2:7] * 2.5 * x.view(2, 8)[1, 2:7],
        (x > 0) * x,
        x.t() < 0,
        torch.relu(x) + x.abs(),
        x.max(1).values,
        x.split(2)[1] * x.split(2)[0],
        x.expand(2, 4, 4) * x,
    ]


@pytest.mark.parametrize("known", [KNOWN[:1], KNOWN[3:4], KNOWN], ids=["mask", "sign", "all"])
@pytest.mark.parametrize("name", WRITES)
def test_what_was_known_is_forgotten_by_every_write(
    workers: Workers, name: str, known: Sequence[Callable[[Tensor], object]]
) -> None:
    x, plain = share(X, *workers), X.clone()
    view, before = x[1:3].t(), x.clone()
    for learn in known:
        learn(x)
        learn(before)
        learn(view)
    WRITES[name](x, share(Y, *workers))
    WRITES[name](plain, Y)
    found = torch.cat([a.reshape(-1).to(torch.float32) for a in seen(x)])
    assert near(found, torch.cat([a.reshape(-1).to(torch.float32) for a in seen(plain)]))
    assert near(view * view, plain[1:3].t() ** 2)
    assert near(before * before, X * X), "the copy changed"


@pytest.mark.parametrize("name", WRITES)
def test_a_changed_secret_gets_another_mask(workers: Workers, name: str) -> None:
    """The same mask for two values would open their difference."""
    x = share(X, *workers)
    before = secret_of(x).masked()
    rows = [secret_of(row).masked() for row in x.unbind()]
    WRITES[name](x, share(Y, *workers))
    after = secret_of(x).masked()
    ids = {id(before.a.remote), *(id(row.a.remote) for row in rows)}
    assert id(after.a.remote) not in ids
    for row in x.unbind():
        assert id(secret_of(row).masked().a.remote) not in ids
    assert secret_of(x).masked() is after, "one mask for one value"


def test_a_view_made_before_a_write_sees_it_and_its_new_mask(workers: Workers) -> None:
    x = share(X, *workers)
    row, column = x[1], x.t()[1]
    row * row, column * column
    row += 1
    plain = X.clone()
    plain[1] += 1
    assert near(row * row, plain[1] ** 2)
    assert near(column * column, plain[:, 1] ** 2)
    assert near(x * x, plain**2)


def test_conversions_and_other_copies_do_not_share_memory(workers: Workers) -> None:
    copies: list[Callable[[Tensor], Tensor]] = [
        torch.clone, lambda x: x.to(torch.float64), lambda x: x + 0, lambda x: x * 1,
        lambda x: torch.cat([x]), lambda x: x.repeat(1, 1), lambda x: x.clamp(-99, 99),
        lambda x: x.index_select(0, torch.arange(4)), lambda x: x**1, lambda x: x.flip(()),
        lambda x: x.roll(0), lambda x: x.amax(()).expand(4, 4),
        lambda x: x.masked_fill(torch.zeros(4, 4, dtype=torch.bool), 0), lambda x: x.tril(9),
        lambda x: x.where(torch.ones(4, 4, dtype=torch.bool), 0.0), lambda x: x.unsqueeze(0).sum(0),
        lambda x: x[[0, 1, 2, 3]], lambda x: torch.constant_pad_nd(x, (0, 0)),
        lambda x: x.prod(0, keepdim=True).expand(4, 4), lambda x: x.cumsum(0), torch.relu,
    ]  # fmt: skip
    for k, copy in enumerate(copies):
        x = share(X, *workers)
        made = copy(x)
        x * x
        if made.is_contiguous():
            made += 1
        assert near(x * x, X * X), f"copy {k} wrote into the original"
        x -= 1
        expected = copy(X) + 1 if made.is_contiguous() else copy(X)
        assert near(made * 1, expected), f"copy {k} changed with the original"


def test_a_mask_lies_in_memory_in_its_own_way(workers: Workers) -> None:
    """A view that the shares' strides allow may need a copy of the mask."""
    x = -share(X[:3], *workers).t()
    x * x
    assert near(x.t().reshape(-1) * 2.5 * x.t().reshape(-1), 2.5 * X[:3].reshape(-1) ** 2)
    y = share(X, *workers)[:, 1:3]
    y * y
    z = y.t().reshape(2, 2, 2)
    assert near(z * z, X[:, 1:3].t().reshape(2, 2, 2) ** 2)


def test_parameters_written_by_an_optimiser_get_new_masks(workers: Workers) -> None:
    """Steps of training with weights that are read through views, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    shared = share(model, *workers)
    inputs, there = X, share(X, *workers)
    losses = []
    for net, data in ((model, inputs), (shared, there)):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(4):
            optimiser.zero_grad()
            loss = (net(data) - 1).square().mean() + net[0].weight[0].square().sum()
            loss.backward()
            optimiser.step()
        losses.append(loss.detach())
    assert near(losses[1], losses[0])
