"""Recurrent modules, and functions that make tensors on their way: the same bits on a worker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import bits, lead

aten = torch.ops.aten

MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(5, 6),
    "lstm of two layers, both ways": lambda: nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True),
    "lstm without biases": lambda: nn.LSTM(5, 6, 2, bias=False),
    "lstm with a projection": lambda: nn.LSTM(5, 6, proj_size=3),
    "gru": lambda: nn.GRU(5, 6, 2, bidirectional=True),
    "rnn": lambda: nn.RNN(5, 6, batch_first=True, nonlinearity="relu"),
    "lstm cell": lambda: nn.LSTMCell(5, 6),
    "gru cell": lambda: nn.GRUCell(5, 6, bias=False),
    "rnn cell": lambda: nn.RNNCell(5, 6),
}


def train(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Results, gradients and parameters after one step."""
    x.requires_grad_()
    results = tree_leaves(module(x))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = sum(r.square().sum() for r in results)
    loss.backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    optimizer.step()
    return [r.detach() for r in (*results, x.grad, *gradients, *module.parameters())]


def compare(worker: RemoteWorker, module: nn.Module, x: torch.Tensor) -> None:
    here = train(copy.deepcopy(module), x.clone())
    there = train(worker.send(module), worker.send(x))
    assert [bits(h) for h in here] == [bits(t.get()) for t in there]


@pytest.mark.parametrize("name", MODULES)
def test_a_recurrent_module_trains_as_it_does_here(world: World, name: str) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        torch.manual_seed(0)
        module = MODULES[name]()
        x = torch.randn(4, 5) if "cell" in name else torch.randn(4, 3, 5)
        compare(workers[-1], module, x)
        if "cell" not in name:
            compare(workers[-1], module, torch.randn(4, 5))  # no batch

    lead(world, program)


@pytest.mark.parametrize("name", ["lstm", "lstm without biases", "gru", "rnn cell"])
def test_a_plan_of_a_recurrent_module_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    x = torch.randn(4, 5) if "cell" in name else torch.randn(4, 3, 5)

    def step(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        results = tree_leaves(module(x))
        parameters = list(module.parameters())
        loss = sum(r.square().sum() for r in results)
        return [*results, *torch.autograd.grad(loss, parameters)]

    plan = fedmpi.plan(step)
    here = step(copy.deepcopy(module), x)
    with fedmpi.simulate(workers=1) as (worker,):
        there, sent = worker.send(module), worker.send(x)
        for _ in range(2):
            assert [bits(h) for h in here] == [bits(t.get()) for t in plan(there, sent)]


def test_a_module_that_comes_back_runs_here() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):
        module, x = nn.LSTM(5, 6), torch.randn(4, 3, 5)
        there = fedmpi.move(alice.send(module), bob)
        assert bits(there(bob.send(x))[0].get()) == bits(module(x)[0])
        back = fedmpi.get(there)
        assert bits(back(x)[0]) == bits(module(x)[0])
        # Sent once more it makes its state once.
        again = alice.send(back)
        assert len(again._forward_pre_hooks) == 1
        with pytest.raises(RuntimeError):
            again(alice.send(torch.randn(4, 3, 7)))
        assert not isinstance(torch.zeros(3), PointerTensor)  # an error has left it too


def test_a_state_of_here_has_to_be_sent(worker: RemoteWorker) -> None:
    there, x = worker.send(nn.GRU(5, 6)), worker.send(torch.randn(4, 3, 5))
    with pytest.raises(UsageError, match=r"a tensor here .* met a pointer"):
        there(x, torch.zeros(1, 3, 6))
    state = worker.send(torch.ones(1, 3, 6))
    assert there(x, state)[0].shape == (4, 3, 6)


LABELS = torch.tensor([2, 0, 1])
FUNCTIONS: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "combinations of a mask": (lambda x: torch.ones(3, 3).triu() * x, torch.randn(3, 3)),
    "matrix_power": (lambda x: torch.linalg.matrix_power(x, 0), torch.randn(3, 3)),
    "matrix_rank": (torch.linalg.matrix_rank, torch.randn(3, 3)),
    "one_hot": (lambda i: F.one_hot(i, 5), LABELS),
    "positions": (lambda x: x + torch.arange(3), torch.randn(2, 3)),
    "quantile": (lambda x: x.quantile(0.3, 0), torch.randn(5, 3)),
    "std": (torch.masked.std, torch.randn(5, 3)),
    "square mask": (
        lambda q: F.scaled_dot_product_attention(
            q, q, q, attn_mask=nn.Transformer.generate_square_subsequent_mask(4)
        ),
        torch.randn(2, 2, 4, 4),
    ),
}


@pytest.fixture
def worker() -> Any:
    with fedmpi.simulate(workers=1) as (worker,):
        yield worker


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_made_on_the_way_is_made_on_the_worker(worker: RemoteWorker, name: str) -> None:
    function, x = FUNCTIONS[name]
    there = worker.send(x)
    with pytest.raises(UsageError, match=r"a tensor here .* met a pointer"):
        function(there)
    with worker.as_device():
        eager = function(there)
    planned = fedmpi.plan(function)(there)  # a plan makes all it makes on its worker
    assert bits(eager.get()) == bits(planned.get()) == bits(function(x))


def test_as_a_device_it_makes_tensors_and_modules(worker: RemoteWorker) -> None:
    torch.manual_seed(3)
    here = nn.Linear(4, 2)
    with worker.as_device():
        module = nn.Linear(4, 2)
        zeros = torch.zeros(2, 4, requires_grad=True)
        assert isinstance(zeros, PointerTensor)
        assert isinstance(module.weight, PointerTensor)
        module(zeros).sum().backward()
        assert torch.zeros(2, device="meta").is_meta
        own = torch.tensor([1.0, 2.0])  # has values of its own: stays here
        assert not isinstance(own, PointerTensor)
    assert not isinstance(torch.zeros(2), PointerTensor)
    assert module.weight.shape == here.weight.shape
    assert torch.equal(zeros.grad.get(), module.weight.detach().get().sum(0).expand(2, 4))


def test_an_lstm_of_shapes_that_do_not_fit_is_refused(worker: RemoteWorker) -> None:
    """oneDNN would read beyond memory."""
    x, w, v = torch.randn(4, 3, 5), torch.randn(24, 5), torch.randn(24, 6)
    b, h = torch.zeros(24), torch.zeros(3, 6)
    settings = (False, [], 2, 6, 1, True, False, False, True)
    forward, backward = aten.mkldnn_rnn_layer.default, aten.mkldnn_rnn_layer_backward.default
    good = [worker.send(t) for t in (x, w, v, b, b, h, h)]
    out, hy, cy, kept = call(forward, (*good, *settings), {})
    small = worker.send(torch.zeros(1))
    for k in range(1, 7):
        with pytest.raises((RemoteError, RuntimeError), match="an LSTM's"):
            call(forward, (*good[:k], small, *good[k + 1 :], *settings), {})[0].get()
    rest = (False, 2, 6, 1, True, True, False, [], False)
    given = [*good, out, hy, cy, out, hy, cy]
    assert call(backward, (*given, *rest, kept), {})[0].get().shape == x.shape
    for k in range(7, 13):
        wrong = [*given[:k], small, *given[k + 1 :]]
        with pytest.raises(RemoteError, match="an LSTM's"):
            call(backward, (*wrong, *rest, kept), {})[0].get()
    with pytest.raises(RemoteError, match="an LSTM keeps"):
        call(backward, (*given, *rest, small), {})[0].get()
    worker.wait()
