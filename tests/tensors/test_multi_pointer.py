"""One tensor on several workers: replicated, split, computed with, fetched, added up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fedmpi
from fedmpi import MultiPointer
from fedmpi.errors import RemoteError, UsageError
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.tensors.programs import lead


def equal(found: list[torch.Tensor], expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_are_split_and_computed_with_on_every_worker(world: World) -> None:
    x, w = torch.randn(11, 4), torch.randn(4, 3, requires_grad=True)

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        rows = MultiPointer.split(x, workers)
        weights = MultiPointer.replicate(w, workers)
        assert [part.rank for part in rows.parts] == [worker.rank for worker in workers]
        expected = x.tensor_split(len(workers))
        assert equal(rows.get(), expected)
        hidden = F.relu(rows @ weights)
        assert equal(hidden.get(), [F.relu(part @ w) for part in expected])
        loss = hidden.sum()
        loss.backward()
        plain = w.detach().clone().requires_grad_()
        grads = [torch.autograd.grad(F.relu(p @ plain).sum(), plain)[0] for p in expected]
        assert equal(weights.grad.get(), grads)
        assert torch.equal(weights.grad.get_sum(), sum(grads[1:], start=grads[0]))
        assert torch.equal(loss.get_mean(), loss.get_sum() / len(workers))

    lead(world, program)


def test_large_tensors_are_on_their_way_to_all_before_any_is_waited_for(world: World) -> None:
    x = torch.randn(2**20 + 7)

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        everywhere, rows = MultiPointer.replicate(x, workers), MultiPointer.split(x, workers)
        expected = x.clone()
        x.zero_()
        assert equal(everywhere.get(), [expected] * len(workers))
        assert equal(rows.get(), expected.tensor_split(len(workers)))
        x.copy_(expected)

    lead(world, program)


def test_operators_take_numbers_from_both_sides_and_tensors_of_one_number() -> None:
    x = torch.arange(1.0, 7.0).reshape(3, 2)
    with fedmpi.simulate(2) as workers:
        there, pair = MultiPointer.split(x, workers), x.tensor_split(2)
        for function in (
            lambda t: 2 - t,
            lambda t: t / 2 + torch.tensor(3.0),
            lambda t: 2**t,
            lambda t: -t + abs(t),
            lambda t: (t > 2) & ~(t == 4),
            lambda t: t.T @ t,
            lambda t: t[0] * t[:, 1:].sum(),
            lambda t: torch.cat([t, t], dim=1),
            lambda t: torch.where(t > 3, t, t.neg()),
        ):
            assert equal(function(there).get(), [function(p) for p in pair])


def test_several_results_are_tuples_of_multipointers() -> None:
    x = torch.randn(4, 3)
    with fedmpi.simulate(2) as workers:
        there = MultiPointer.split(x, workers)
        found = there.max(dim=1)
        assert equal(found.indices.get(), [p.max(dim=1).indices for p in x.tensor_split(2)])
        _, _, third = there.unbind(1)
        assert equal(third.get(), [p[:, 2] for p in x.tensor_split(2)])
        assert equal([row.get()[1] for row in there], x[2:])


def test_assignments_change_the_parts() -> None:
    x = torch.randn(4, 3)
    with fedmpi.simulate(2) as workers:
        there = MultiPointer.split(x, workers)
        same = there
        there += 1
        there[0] = 7
        expected = [p + 1 for p in x.tensor_split(2)]
        for part in expected:
            part[0] = 7
        assert equal(same.get(), expected)
        assert not there.requires_grad
        there.requires_grad = True
        assert there.requires_grad
        assert there.grad is None
        (there * there).sum().backward()
        assert equal(there.grad.get(), [2 * p for p in expected])
        there.grad = None
        assert [part.grad for part in there.parts] == [None, None]
        with pytest.raises(AttributeError, match="'colour' of a MultiPointer cannot be set"):
            there.colour = 1


def test_what_does_not_fit_one_part_changes_none() -> None:
    with fedmpi.simulate(workers=3) as workers:
        rows = MultiPointer.split(torch.ones(5, 2), workers)  # 2, 2 and 1 rows
        other = MultiPointer.replicate(torch.ones(2, 2), workers)
        for change in (
            lambda: rows.add_(other),
            lambda: rows.copy_(other),
            lambda: rows.__setitem__(1, 7.0),
            lambda: rows.__setitem__(slice(0, 2), other),
        ):
            with pytest.raises((RuntimeError, IndexError, UsageError)):
                change()
            for worker in workers:
                worker.wait()
            assert equal(rows.get(), torch.ones(5, 2).tensor_split(3))
        assert equal(rows.mul_(2).get(), (torch.ones(5, 2) * 2).tensor_split(3))


def test_a_shape_that_cannot_change_everywhere_changes_nowhere() -> None:
    with fedmpi.simulate(workers=2) as (alice, bob):
        x, y = torch.arange(6.0).reshape(2, 3), torch.ones(3)
        parts = MultiPointer([alice.send(x), bob.send(y)])
        with pytest.raises((RuntimeError, IndexError)):
            parts.transpose_(0, 1)
        assert [list(part.shape) for part in parts.parts] == [[2, 3], [3]]
        assert equal(parts.mul_(2).get(), [x * 2, y * 2])


def test_what_is_no_tensor_has_to_be_the_same_everywhere() -> None:
    with fedmpi.simulate(2) as workers:
        there = MultiPointer.split(torch.zeros(3, 2), workers)
        assert (there.dim(), there.dtype, there.size(1)) == (2, torch.float32, 2)
        assert there[:1].shape == (1, 2)
        with pytest.raises(UsageError, match="shape is not the same on all workers"):
            _ = there.shape
        for values in (bool, int, float, lambda t: t.item(), lambda t: t.tolist()):
            with pytest.raises(UsageError, match="one value for each worker"):
                values(there)
        with pytest.raises(AttributeError, match="no attribute 'colour'"):
            _ = there.colour


def test_parts_are_matched_by_worker_and_results_keep_the_first_ones_order() -> None:
    with fedmpi.simulate(3) as (alice, bob, carol):
        one = MultiPointer([w.send(torch.tensor(float(w.rank))) for w in (carol, alice, bob)])
        other = MultiPointer.replicate(torch.tensor(10.0), (bob, carol, alice))
        other = other + MultiPointer(
            [w.send(torch.tensor(w.rank * 0.5)) for w in (alice, bob, carol)]
        )
        both = one + other
        assert [part.rank for part in both.parts] == [3, 1, 2]
        assert [float(value) for value in both.get()] == [14.5, 11.5, 13.0]


def test_sums_are_added_in_the_order_of_the_ranks() -> None:
    values = [1e8, 1.0, -1e8]  # float32: (1e8 + 1) - 1e8 is 0
    with fedmpi.simulate(3) as workers:
        parts = [w.send(torch.tensor(v)) for w, v in zip(workers, values, strict=True)]
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            assert float(MultiPointer([parts[k] for k in order]).get_sum()) == 0.0
        with pytest.raises(UsageError, match="different shapes cannot be added up"):
            MultiPointer.split(torch.zeros(4), workers).get_sum()


def test_one_worker_alone_takes_its_pointers_too() -> None:
    with fedmpi.simulate(2) as (alice, _):
        there = MultiPointer.replicate(torch.ones(2), [alice])
        assert equal((there + alice.send(torch.ones(2))).get(), [torch.full((2,), 2.0)])


def test_worker_sets_that_do_not_match_are_refused() -> None:
    ones = torch.ones(2)
    with fedmpi.simulate(3) as workers:
        alice, bob, _ = workers
        everywhere = MultiPointer.replicate(ones, workers)
        before = len(alice.objects())
        for wrong, sentence in (
            (lambda: MultiPointer([]), "at least one part"),
            (lambda: MultiPointer.split(ones, []), "at least one worker"),
            (lambda: MultiPointer.split(torch.tensor(1.0), workers), "no rows to split"),
            (lambda: MultiPointer([ones]), "a part of type Tensor: expected a pointer"),
            (lambda: MultiPointer([alice.send(ones), alice.send(ones)]), "two parts on one worker"),
            (lambda: MultiPointer.replicate(ones, [alice, alice]), "a worker is named twice"),
            (lambda: MultiPointer.replicate(everywhere.parts[0], [bob]), "on a worker already"),
            (lambda: everywhere + MultiPointer.replicate(ones, (alice, bob)), "not on the same"),
            (lambda: everywhere + everywhere.parts[0], "not on its worker alone"),
            (lambda: everywhere.parts[0] + everywhere, "not on its worker alone"),
            (lambda: everywhere + ones, "send it to the pointer's worker first"),
            (lambda: ones + everywhere, "send it to the pointer's worker first"),
        ):
            with pytest.raises(UsageError, match=sentence):
                wrong()
        assert len(alice.objects()) == before
        with fedmpi.simulate(1) as (other,), pytest.raises(UsageError, match="two jobs"):
            MultiPointer([alice.send(ones), other.send(ones)])


def test_all_replies_are_taken_in_before_the_first_failure_is_raised() -> None:
    with fedmpi.simulate(3) as workers:
        there = MultiPointer.replicate(torch.ones(2), workers)
        there.parts[0].make_private()
        there.parts[2].make_private()
        with pytest.raises(RemoteError, match="rank 1 keeps object 1 private"):
            there.get()
        assert there.parts[1].tolist() == [1.0, 1.0]
        assert [worker.nbytes() for worker in workers] == [8, 8, 8]


def test_copies_are_deep_and_the_text_fetches_nothing() -> None:
    with fedmpi.simulate(2) as workers:
        there = MultiPointer.replicate(torch.zeros(2, requires_grad=True), workers)
        other = copy.deepcopy(there)
        other.data.add_(1)
        assert repr(there) == "MultiPointer(rank 1: [2], rank 2: [2], float32, requires_grad=True)"
        assert equal(there.get(), torch.zeros(2, 2))
        assert equal(other.get(), torch.ones(2, 2))
        assert len({there, other, there}) == 2
