"""A pointer is used as a tensor is, gives what a tensor gives, and says clearly what it cannot."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fedmpi
from fedmpi.errors import UsageError
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import bits, counted_messages, lead

MEGABYTE = 2**20


def test_the_text_of_a_pointer_fetches_nothing() -> None:
    with fedmpi.simulate(2) as (_, bob):
        x = bob.send(torch.zeros(2, 3, requires_grad=True))
        with counted_messages(bob) as sent:
            assert repr(x) == "PointerTensor(rank 2, id 1, [2, 3], float32, requires_grad=True)"
            assert f"{x}" == str(x) == repr(x)
            halves = bob.send(torch.zeros(2, dtype=torch.int8))
            assert repr(halves) == "PointerTensor(rank 2, id 2, [2], int8)"
        assert sent == [2]  # the small tensor, and the wait at the end


def test_values_come_when_they_are_asked_for(world: World) -> None:
    values = torch.tensor([[1.5, -2.0], [0.0, 4.0]])

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        x = workers[-1].send(values)
        assert torch.equal(x.get(), values)
        assert torch.equal(fedmpi.get(x), values)
        assert x.tolist() == values.tolist()
        assert (x.numpy() == values.numpy()).all()
        assert x[1, 1].item() == 4.0
        assert (float(x.sum()), int(x[0, 1]), bool(x[1, 0])) == (3.5, -2, False)
        assert x[0, 0] > 1
        assert not x.min() > 0
        assert [float(row.sum()) for row in x] == [-0.5, 4.0]
        assert (len(x), x.shape, x.dtype, x.device) == (2, (2, 2), torch.float32, values.device)

    lead(world, program)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        torch.nonzero,
        torch.unique,
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.repeat_interleave(x, (x > 0).long()),
    ],
    ids=["mask", "nonzero", "unique", "masked_select", "repeat_interleave"],
)
def test_shapes_that_depend_on_values_are_refused(function: Callable[..., Any]) -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.tensor([1.0, -1.0]))
        with pytest.raises(UsageError):
            function(x)
        assert torch.where(x > 0, x, 0.0).tolist() == [1.0, 0.0]


def test_tensors_of_two_places_do_not_meet() -> None:
    ones = torch.ones(2)
    with fedmpi.simulate(2) as (alice, bob):
        x, y = alice.send(ones), bob.send(ones)
        for wrong in (lambda: x + y, lambda: torch.cat([x, y]), lambda: y.copy_(x)):
            with pytest.raises(UsageError, match="are on two workers"):
                wrong()
        for wrong in (lambda: x + ones, lambda: ones * y, lambda: torch.stack([x, ones])):
            with pytest.raises(UsageError, match="send it to the pointer's worker first"):
                wrong()
        with pytest.raises(UsageError, match="a generator stays here"):
            x.uniform_(generator=torch.Generator())
        with pytest.raises(UsageError, match="is on a worker already: use move or copy"):
            bob.send(x)
        assert (x + torch.tensor(2.0)).tolist() == [3.0, 3.0]
        assert (x + y.copy(alice)).tolist() == [2.0, 2.0]


def test_what_does_not_fit_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedmpi.tensors.link.PATIENCE", 60.0)
    with fedmpi.simulate(1) as (alice,):
        x, y = alice.send(torch.ones(2, 3)), alice.send(torch.ones(2, 3))
        with counted_messages(alice) as sent:
            for wrong, sentence in (
                (lambda: x @ y, "reduction dim"),
                (lambda: x.view(4), "invalid for input of size 6"),
                (lambda: x + y[:, :2], "must match|broadcast"),
                (lambda: x.log_softmax(5), "Dimension out of range"),
                (lambda: torch.cat([x, y[:, :1]], 0), "Sizes of tensors must match"),
            ):
                with pytest.raises((RuntimeError, IndexError), match=sentence):
                    wrong()
            del wrong
        assert sent[0] <= 2  # the slices, and the wait at the end
        assert (x @ y.T).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_views_look_at_the_same_memory_on_the_worker(world: World) -> None:
    def edit(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        row, column, flat = x[0], x.T[1], x.view(-1)
        row.add_(10)
        column.mul_(2)
        flat[2:4] = -1
        x[2] = row
        x[:, 0] += column
        x.diagonal().zero_()
        first, second = x.chunk(2, dim=1)
        first.copy_(second)
        return x, row, column, flat, first

    values = torch.arange(16.0).reshape(4, 4)

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        there = edit(workers[-1].send(values))
        for found, expected in zip(there, edit(values.clone()), strict=True):
            assert bits(found.get()) == bits(expected)
            assert found.stride() == expected.stride()
        assert workers[-1].nbytes() == 64  # one memory

    lead(world, program)


def gradients(x: Any, w: Any) -> list[Any]:
    """A walk through autograd; what came of it."""
    seen = []
    x.requires_grad_()
    hidden = torch.tanh(x @ w)
    hidden.retain_grad()
    hidden.register_hook(lambda grad: seen.append(grad) or grad * 2)
    clone = hidden.clone()
    clone[0] = clone[1] * 2
    clone.mul_(3)
    loss = F.softplus(clone).mean() + (x**2).sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    with torch.no_grad():
        constant = x * 2
    assert not constant.requires_grad
    assert not x.detach().requires_grad
    assert constant.is_leaf
    (again,) = torch.autograd.grad((x.exp() * w.sum()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(again.sum(), x)
    return [hidden, hidden.grad, first, x.grad, loss, constant, second, *seen]


def test_gradients_are_those_of_plain_tensors(world: World) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 2)

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        expected = gradients(x.clone(), w)
        found = gradients(workers[0].send(x), workers[0].send(w))
        assert [bits(f.get()) for f in found] == [bits(e) for e in expected]

    lead(world, program)


def test_in_place_writes_on_what_autograd_needs_are_refused_as_always() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(3, requires_grad=True))
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            x.add_(1)
        y = x.exp()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_copies_are_deep_and_cannot_be_saved() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.zeros(2, requires_grad=True))
        pair = copy.deepcopy([x, x])
        pair[0].data.add_(1)
        assert pair[0] is pair[1]
        assert pair[0].requires_grad
        assert pair[0].is_leaf
        assert (x.tolist(), pair[1].tolist()) == ([0.0, 0.0], [1.0, 1.0])
        for save in (pickle.dumps, lambda it: torch.save(it, io.BytesIO()), copy.copy):
            with pytest.raises(UsageError, match=r"cannot be saved: fetch the values with get\(\)"):
                save(x)


@pytest.mark.parametrize("length", [3, 25_000, 2 * MEGABYTE], ids=["12 B", "100 kB", "8 MB"])
def test_what_was_sent_does_not_see_later_changes(length: int, world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        x = torch.arange(float(length))
        pointers = []
        for worker in workers:
            pointers.append(worker.send(x))
            x += 1
        for k, pointer in enumerate(pointers):
            assert torch.equal(pointer.get(), torch.arange(float(length)) + k)

    lead(world, program)


def test_sends_keep_shape_dtype_and_nothing_of_the_history(world: World) -> None:
    values = [
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.randn(4, 6).T,
        torch.randn(4, 6)[:, ::2],
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(5, dtype=torch.int16).expand(2, 5),
        torch.randn(3).bfloat16().float().half(),
        (torch.ones(2, requires_grad=True) * 3),
    ]

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        for value in values:
            pointer = workers[-1].send(value)
            assert bits(pointer.get()) == bits(value.detach().resolve_conj())
            assert pointer.is_contiguous()
            assert pointer.is_leaf
            assert pointer.requires_grad == value.requires_grad

    lead(world, program)


def test_large_tensors_cross_between_two_workers(world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        if len(workers) < 2:
            return
        alice, bob = workers[0], workers[-1]
        ones, twos = torch.ones(2 * MEGABYTE), torch.full((2 * MEGABYTE,), 2.0)
        x, y = alice.send(ones), bob.send(twos)
        for _ in range(3):
            # Both are told to give before either takes.
            x, y = x.move(bob), y.move(alice)
            x.add_(1)
            alice, bob = bob, alice
        assert (x.rank, y.rank) == (workers[-1].rank, workers[0].rank)
        assert torch.equal(x.get(), ones + 3)
        assert torch.equal(y.get(), twos)
        assert {worker.nbytes() for worker in (alice, bob)} == {8 * MEGABYTE}

    lead(world, program)


def test_moves_leave_nothing_behind_and_copies_are_apart() -> None:
    with fedmpi.simulate(2) as (alice, bob):
        x = alice.send(torch.arange(6.0).reshape(2, 3), tags=["#x"], description="six")
        x.requires_grad_()
        other = x.copy(bob)
        assert other.requires_grad
        other.data.zero_()
        column = x.detach()[:, 1].copy(bob)
        x.data.add_(1)
        assert (column.tolist(), other.tolist()) == ([1.0, 4.0], [[0.0] * 3] * 2)
        assert column.is_contiguous()
        [found] = [one for one in bob.objects() if one.key == other.remote.key]
        assert (found.tags, found.description) == (["#x"], "six")
        moved = x.move(bob)
        assert moved.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        with pytest.raises(fedmpi.errors.RemoteError, match="no object 1: it was deleted, moved"):
            x.get()
        with pytest.raises(UsageError, match=r"is on that worker already: use clone\(\)"):
            moved.move(bob)
        assert (alice.objects(), alice.nbytes()) == ([], 0)


def test_draws_follow_the_seed_of_the_program() -> None:
    def draw(worker: RemoteWorker) -> list[Any]:
        x = worker.send(torch.full((4, 5), 0.5))
        return [
            torch.rand_like(x).tolist(),
            torch.randn_like(x).tolist(),
            F.dropout(x, 0.5).tolist(),
            torch.bernoulli(x).tolist(),
            x.clone().uniform_(-1, 1).tolist(),
            torch.multinomial(x, 2).tolist(),
        ]

    with fedmpi.simulate(2) as (alice, bob):
        torch.manual_seed(5)
        first = draw(alice)
        after = torch.rand(3)
        torch.manual_seed(5)
        assert draw(bob) == first
        assert torch.equal(torch.rand(3), after)
        assert draw(bob) != first
        # The program's own sequence goes on after one draw for each operator.
        torch.manual_seed(5)
        torch.rand_like(alice.send(torch.zeros(1000)))
        found = torch.rand(3)
        torch.manual_seed(5)
        torch.randint(2**62, ())
        assert torch.equal(found, torch.rand(3))


UNARY = ["neg", "exp", "tanh", "relu", "t", "abs", "sigmoid", "cumsum", "softmax", "flip", "clone"]
BINARY = ["add", "mul", "sub", "matmul", "maximum", "where", "atan2"]


def apply(name: str, *operands: Any) -> Any:
    if name in ("cumsum", "softmax"):
        return getattr(operands[0], name)(0)
    if name == "flip":
        return operands[0].flip(0, 1)
    if name == "where":
        return torch.where(operands[0] > operands[1], *operands)
    return getattr(torch, name)(*operands)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(UNARY + BINARY), st.integers(0, 99), st.integers(0, 99))))
def test_random_programs_give_the_same_bits(steps: list[tuple[str, int, int]]) -> None:
    values = [torch.linspace(-1, 1, 9).reshape(3, 3), torch.eye(3)]
    with fedmpi.simulate(1) as (alice,):
        here, there = list(values), [alice.send(v) for v in values]
        for name, a, b in steps:
            places = [a % len(here), b % len(here)][: 1 if name in UNARY else 2]
            here.append(apply(name, *(here[k] for k in places)))
            there.append(apply(name, *(there[k] for k in places)))
        assert [bits(t.get()) for t in there] == [bits(h) for h in here]
