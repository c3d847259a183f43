"""Who gets to know what: the owner knows all masks, so that nothing made with them may reach it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import fedmpi
from fedmpi.comm.endpoint import Channel
from fedmpi.errors import RemoteError
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.tensors.link import Remote
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.operate import Call, Operate
from fedmpi.workers.signature import Signature
from tests.comm.worlds import World
from tests.spdz.transcripts import recorded, recorded_draws, surprise
from tests.tensors.programs import lead

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]

KEPT = "keeps object .* to itself, a share or what was opened under a mask"


class _Borrowed(Remote):
    """Names what a pointer to shares stands for on one party alone; deletes nothing."""

    def __del__(self) -> None:
        pass


def on_one(worker: RemoteWorker, shares: Any) -> PointerTensor:
    """What a curious owner would make to get at one party's object."""
    found = PointerTensor(_Borrowed(worker.link, shares.remote.key), shares.layout_there)
    found.shares = shares  # type: ignore[attr-defined] # they live as long
    return found


def shared(workers: Workers) -> tuple[Tensor, Tensor]:
    return share(torch.tensor([3.0, -5.0]), *workers), share(torch.tensor([2.0, 7.0]), *workers)


OBJECTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a share": lambda x, y: secret_of(x).share,
    "a mask": lambda x, y: secret_of(x).masked().a,
    "an opening": lambda x, y: secret_of(x).masked().e,
    "a view of an opening": lambda x, y: secret_of(x).masked().e[:1],
    "what a truncation opened": lambda x, y: secret_of(x * y).opened.c,  # type: ignore[union-attr]
    "a masked sign": lambda x, y: secret_of(x > 0).parts.z,  # type: ignore[union-attr]
    "a share of its mask": lambda x, y: secret_of(x > 0).parts.rho,  # type: ignore[union-attr]
    "a product's share": lambda x, y: secret_of(x * y).share,
    "a sum's share": lambda x, y: secret_of(x + y).share,
}

LAUNDERED: list[Callable[[Any], Any]] = [
    lambda e: e,
    lambda e: e[0],
    lambda e: e.clone(),
    lambda e: e + 0,
    lambda e: e * 1.0,
    lambda e: e.double(),
    lambda e: e.sum(),
    lambda e: e > 0,
    lambda e: torch.stack([e, e]),
    lambda e: torch.zeros_like(e).copy_(e),
]


def test_the_owner_fetches_no_share_and_no_opening(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        for make in OBJECTS.values():
            found = make(*shared(workers))
            for worker in workers:
                with pytest.raises(RemoteError, match=KEPT):
                    on_one(worker, found).get()
        x, y = shared(workers)
        assert (x * y).reveal().tolist() == [6.0, -35.0]  # type: ignore[attr-defined]

    lead(world, program)


@pytest.mark.parametrize("launder", LAUNDERED)
@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_computed_from_them_stays_too(name: str, launder: Callable[[Any], Any]) -> None:
    with fedmpi.simulate(2) as workers:
        there = on_one(workers[1], OBJECTS[name](*shared(workers)))
        with pytest.raises(RemoteError, match=KEPT):
            launder(there).get()


@pytest.mark.parametrize("name", OBJECTS)
def test_they_do_not_move_to_another_worker(name: str) -> None:
    with fedmpi.simulate(3) as workers:
        there = on_one(workers[0], OBJECTS[name](*shared(workers[:2])))
        with pytest.raises(RemoteError, match="a share does not leave its party"):
            there.copy(workers[2]).get()


def test_a_plan_does_not_launder_them() -> None:
    @fedmpi.plan
    def plus_nothing(x: Tensor) -> Tensor:
        return x + 0

    with fedmpi.simulate(2) as workers:
        there = on_one(workers[0], OBJECTS["an opening"](*shared(workers)))
        with pytest.raises(RemoteError, match=KEPT):
            plus_nothing(there).get()


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_what_is_revealed_says_nothing_of_what_it_was_computed_from(parties: int) -> None:
    """With the shares of a product as they are, the owner would solve for both factors: all else
    in z_j = c_j + e b_j + a_j f + [first] e f is known to the dealer, and there are n equations.
    """
    n = 64 * 200
    with fedmpi.simulate(parties) as workers:
        x, y = share(torch.full((n,), 3), *workers), share(torch.full((n,), 5), *workers)
        product = x * y
        with recorded() as frames:
            assert torch.equal(product.reveal(), torch.full((n,), 15))  # type: ignore[attr-defined]
            assert torch.equal(product.reveal(), torch.full((n,), 15))  # type: ignore[attr-defined]
        told = [f.tensors[0] for f in frames if f.channel == Channel.REPLY]
        assert len(told) == 2 * parties
        once, again = told[:parties], told[parties:]
        assert torch.equal(sum(once), torch.full((n,), 15))  # type: ignore[arg-type]
        for k in range(parties):
            # The same share twice: each time the blind is another one, of any n-1 parties too.
            assert surprise(once[k]) < 1.6
            assert surprise(once[k] - again[k]) < 1.6
            others = [one for j, one in enumerate(once) if j != k]
            assert surprise(torch.stack(others).sum(0)) < 1.6


def test_private_rows_and_what_comes_of_them_are_not_revealed(world: World) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        rows = workers[-1].send(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), private=True)
        x = share(rows, *workers)
        w = share(torch.eye(2), *workers)
        for found in (x, x @ w, x.sum(), x > 2, torch.relu(x)[0], x * 0 + w):
            with pytest.raises(RemoteError, match="private: it does not leave the worker"):
                found.reveal()  # type: ignore[attr-defined]
        for worker in workers:
            with pytest.raises(RemoteError, match="private"):
                on_one(worker, secret_of(x).masked().e).get()
        w.copy_(x)
        with pytest.raises(RemoteError, match="private"):
            w.reveal()  # type: ignore[attr-defined]
        with pytest.raises(RemoteError, match="private"):
            x.reveal(to=workers[0]).get()  # type: ignore[attr-defined]
        other = share(torch.ones(2), *workers)
        assert (other + 1).reveal().tolist() == [2.0, 2.0]  # type: ignore[attr-defined]

    lead(world, program)


def test_an_accepted_plan_gives_its_result_and_nothing_else() -> None:
    @fedmpi.plan
    def mean_of_squares(x: Tensor) -> Tensor:
        return (x * x).mean()

    with fedmpi.simulate(2) as workers:
        rows = workers[0].send(torch.tensor([3.0, 1.0, 2.0, 4.0]), private=True)
        x = share(rows, *workers)
        with pytest.raises(RemoteError, match="private"):
            mean_of_squares(x).reveal()
        for worker in workers:
            worker.accept(mean_of_squares.record(x))
        found = mean_of_squares(x)
        assert abs(float(found.reveal()) - 7.5) < 1e-3
        with pytest.raises(RemoteError, match=KEPT):
            on_one(workers[0], secret_of(found).share).get()
        with pytest.raises(RemoteError, match="private"):
            x.reveal()  # type: ignore[attr-defined]


def test_the_error_of_private_rows_does_not_tell_their_values() -> None:
    with fedmpi.simulate(2) as workers:
        rows = workers[0].send(torch.tensor([12345.0, 2.0**40]), private=True)
        with pytest.raises(RemoteError) as caught:
            share(rows, *workers).reveal()
        assert "private values on rank 1 cannot be shared" in str(caught.value)
        assert "12345" not in str(caught.value)
        assert "e+" not in str(caught.value)


def test_an_operator_that_fails_on_shares_does_not_tell_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A share as an index is out of bounds, which PyTorch would say with its value."""
    with fedmpi.simulate(2) as workers:
        x = share(torch.tensor([5.0]), *workers)
        own = secret_of(x).share.remote.key
        index = Signature("index_select", [{"tensor": 0}, 0, {"tensor": 0}], {}, 0)
        call = Call(0, 2**40, [own], [], [2**41])
        workers[0].link.tell(Operate([(2**40, index)], [call], []))
        with pytest.raises(RemoteError) as caught:
            workers[0].wait()
    told = f"{caught.value}{caught.value.remote_traceback}{caplog.text}"
    assert "index_select failed on rank 1, on tensors of [1]: why is not told" in told
    assert "out of" not in told
    assert "Traceback" not in told


def test_revealed_to_a_worker_alone() -> None:
    with fedmpi.simulate(4) as workers:
        x, y = shared(workers[:3])
        with recorded() as frames:
            there = (x * y).reveal(to=workers[3])  # type: ignore[attr-defined]
            workers[3].wait()
        assert not any(f.tensors for f in frames if f.to == 0)
        assert {f.to for f in frames if f.channel == Channel.PEER and f.tensors} == {4}
        assert (there * 2).get().tolist() == [12.0, -70.0]
        lost = x * 1.5
        workers[1].link.dead.append(secret_of(lost).share.remote.key)
        with pytest.raises(RemoteError, match="rank 2"):
            lost.reveal(to=workers[3]).get()  # type: ignore[attr-defined]
        with pytest.raises(RemoteError):
            workers[1].wait()
        assert y.reveal(to=workers[3]).get().tolist() == [2.0, 7.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_every_word_of_a_stream_is_drawn_once_by_each_side(parties: int) -> None:
    """Streams of parties and dealer, of blinds, and of the shares of a worker's own data."""
    with recorded_draws() as drawn, fedmpi.simulate(parties) as workers:
        x, y = shared(workers)
        own = share(workers[0].send(torch.tensor([1.0, 2.0])), *workers)
        for _ in range(3):
            x += 1
            found = torch.relu(x * y - own) @ torch.maximum(x, own)
            found.reveal()  # type: ignore[attr-defined]
        for worker in workers:
            worker.wait()
    sides: dict[tuple[bool, bytes], list[tuple[int, int, int]]] = {}
    for one in drawn:
        sides.setdefault((one.dealer, one.key), []).append((one.number, one.start, one.end))
    dealt = [key for dealer, key in sides if dealer]
    assert len(dealt) == parties
    for key in dealt[:-1]:
        assert sides[True, key] == sides[False, key], "a party and the dealer drew other words"
    for (_, key), words in sides.items():
        blind_or_own = key not in dealt
        # Such a key is held by two workers, each of whom draws the same.
        words = words if not blind_or_own else sorted(set(words))
        for (t, _, end), (u, start, _) in itertools.pairwise(words):
            assert (u, start) > (t, 0) if u != t else start >= end
