"""Protocols: plans on several workers with moves in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedmpi
from fedmpi.errors import RemoteError, UsageError


def test_a_protocol_computes_what_its_function_computes() -> None:
    with fedmpi.simulate(workers=3) as (alice, bob, carol):

        @fedmpi.protocol
        def relay(x: Any, w: Any, b: Any) -> Any:
            hidden = (x @ x.t()).relu()
            there = hidden.copy(bob)
            product = there @ w + there.sum()
            last = product.move(carol)
            return {"result": last * 2 + b, "hidden": hidden, "b": b}

        g = torch.Generator().manual_seed(0)
        for _ in range(3):
            x, w, b = (torch.randn(4, 4, generator=g) for _ in range(3))
            b_there = carol.send(b)
            found = relay(alice.send(x), bob.send(w), b_there)
            hidden = (x @ x.t()).relu()
            expected = (hidden @ w + hidden.sum()) * 2 + b
            torch.testing.assert_close(found["result"].get(), expected)
            torch.testing.assert_close(found["hidden"].get(), hidden)
            assert (found["result"].rank, found["hidden"].rank) == (3, 1)
            assert found["b"] is b_there


def test_states_stay_where_they_are() -> None:
    """Workers count what passes through them; the owner says go."""
    with fedmpi.simulate(workers=2) as (alice, bob):
        ran = []

        @fedmpi.protocol
        def pass_on(x: Any, count_a: Any, count_b: Any) -> Any:
            ran.append(1)
            count_a.add_(x.sum())
            y = x.copy(bob)
            count_b.add_(y.sum() * 2)
            back = (y + 1).copy(alice)
            x.mul_(0)
            return back - x

        x = torch.ones(3)
        counts = alice.send(torch.zeros(())), bob.send(torch.zeros(()))
        for _ in range(4):
            found = pass_on(alice.send(x), *counts)
            assert found.get().tolist() == [2, 2, 2]
        assert [c.get().item() for c in counts] == [12, 24]
        assert len(ran) == 1


def test_gradients_are_computed_inside() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):

        @fedmpi.protocol
        def gradient(w: Any, x: Any) -> Any:
            (w * x).square().sum().backward()
            return w.grad.copy(bob)

        w, x = torch.randn(3, requires_grad=True), torch.randn(3)
        (w * x).square().sum().backward()
        found = gradient(alice.send(w), alice.send(x))
        assert found.rank == 2
        torch.testing.assert_close(found.get(), w.grad)


def test_plans_are_as_few_as_the_moves_allow() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):

        @fedmpi.protocol
        def both(x: Any, y: Any) -> Any:
            for _ in range(3):
                x, y = x + 1, y * 2  # in turn, but nothing moves
            return x, y, x.copy(bob) + y

        arguments = alice.send(torch.ones(2)), bob.send(torch.ones(2))
        code = both.code(*arguments)
        assert code.count("on rank 1") == 1
        assert code.count("on rank 2") == 1
        assert "copy object" in code
        assert [t.get().tolist() for t in both(*arguments)] == [[4, 4], [8, 8], [12, 12]]


def test_what_a_protocol_cannot_do_is_refused() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):
        x = alice.send(torch.ones(2))
        with pytest.raises(UsageError, match="send it first"):
            fedmpi.protocol(torch.add)(x, torch.ones(2))
        with pytest.raises(UsageError, match="values"):
            fedmpi.protocol(lambda t: t * t.sum().item())(x)
        with pytest.raises(UsageError, match="on two workers"):
            fedmpi.protocol(torch.add)(x, bob.send(torch.ones(2)))
        with pytest.raises(UsageError, match="a protocol"):
            fedmpi.plan(lambda t: t.copy(bob))(x)
        with pytest.raises(UsageError, match="already"):
            fedmpi.protocol(lambda t: t.copy(alice))(x)


def test_private_objects_stay_private_on_their_way() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):
        x = alice.send(torch.ones(2), private=True)
        found = fedmpi.protocol(lambda t: (t + 1).copy(bob) * 2)(x)
        with pytest.raises(RemoteError, match="private"):
            found.get()
