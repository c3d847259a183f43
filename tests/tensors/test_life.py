"""How objects live and die on a worker, and what the owner hears when something fails there."""

from __future__ import annotations

import gc
import inspect
from contextlib import suppress
from typing import Any

import pytest
import torch

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.tensors.link import BATCH
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.signature import Callee
from tests.comm.worlds import World
from tests.tensors.programs import counted_messages, lead


def test_objects_live_as_long_as_their_pointers(world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        worker = workers[-1]
        x = worker.send(torch.ones(1000))
        y = x * 2
        view = y[:10]
        assert (len(worker.objects()), worker.nbytes()) == (3, 8000)
        del y
        assert (len(worker.objects()), worker.nbytes()) == (3, 8000)  # as its view's base
        del view
        assert (len(worker.objects()), worker.nbytes()) == (1, 4000)
        other = x.detach()  # the same object
        del x
        assert worker.nbytes() == 4000
        assert float(other.sum()) == 1000
        del other
        assert (worker.objects(), worker.nbytes()) == ([], 0)

    lead(world, program)


def test_temporaries_cost_no_messages_of_their_own_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = 100_000
    monkeypatch.setattr("fedmpi.tensors.link.PATIENCE", 60.0)
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(2))
        before = (len(alice.objects()), alice.nbytes(), len(alice.link._users))
        with counted_messages(alice) as sent:
            for _ in range(number):
                x + 1
        assert 0 <= sent[0] - number / BATCH <= 2  # the last that died, and the wait
        alice.wait()
        assert (len(alice.objects()), alice.nbytes(), len(alice.link._users)) == before


def test_what_has_died_makes_room_for_the_next_result() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(1000))
        alice.limit_memory(12_000)
        for _ in range(100):
            x = x + 1  # three of them never live at once
        assert float(x[0]) == 101


def test_objects_are_found_by_their_tags(world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        worker = workers[-1]
        rows = torch.arange(6.0).reshape(2, 3)
        x = worker.send(rows, tags=["#x", "#train"], description="two rows")
        y = worker.send(torch.ones(2, dtype=torch.int64), tags=["#y", "#train"])
        both = worker.search("#train")
        assert [p.remote.key for p in both] == [x.remote.key, y.remote.key]
        assert worker.search("#x", "#y") == []
        [found] = worker.search("#x", "#train")
        del x, both
        assert torch.equal((found + 1).get(), rows + 1)
        listed = worker.objects()[0]
        assert (listed.shape, listed.dtype, listed.nbytes) == ([2, 3], "float32", 24)
        assert (listed.tags, listed.description) == (["#x", "#train"], "two rows")
        del found
        assert worker.search("#x") == []

    lead(world, program)


def test_clear_deletes_all_and_the_worker_goes_on() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(3))
        y = x + 1
        alice.clear()
        assert (alice.objects(), alice.nbytes()) == ([], 0)
        with pytest.raises(RemoteError, match="no object 2: it was deleted"):
            y.get()
        z = alice.send(torch.zeros(3))
        del x, y
        assert z.tolist() == [0.0, 0.0, 0.0]


def test_a_scope_frees_what_was_made_inside_though_pointers_live_on() -> None:
    with fedmpi.simulate(2) as workers:
        outside = [worker.send(torch.ones(4)) for worker in workers]
        kept = []
        with fedmpi.scope():
            kept += [x * 2 for x in outside]
            assert [x.tolist() for x in kept] == [[2.0] * 4] * 2
            with suppress(ZeroDivisionError), fedmpi.scope():
                kept.append(outside[0] * 3)
                raise ZeroDivisionError
            with pytest.raises(RemoteError, match="it was deleted"):
                kept[2].get()
        assert [worker.nbytes() for worker in workers] == [16, 16]
        with pytest.raises(RemoteError, match="it was deleted"):
            kept[0].get()
        assert outside[0].tolist() == [1.0] * 4


def test_a_failure_names_the_rank_the_operator_and_the_line(world: World) -> None:
    def program(workers: tuple[RemoteWorker, ...]) -> None:
        worker = workers[-1]
        table, good = worker.send(torch.ones(3, 2)), worker.send(torch.ones(2))
        places = worker.send(torch.tensor([0, 7]))
        frame = inspect.currentframe()
        assert frame is not None
        wrong = torch.nn.functional.embedding(places, table)
        line = frame.f_lineno - 1
        later = (wrong + 1).sum() * 2
        sound = good + 1
        with pytest.raises(RemoteError) as caught:
            sound.get()
        error = caught.value
        assert str(error).startswith(f"worker on rank {worker.rank}: ")
        assert f"(called at {__file__}:{line})" in str(error)
        assert error.rank == worker.rank
        assert error.remote_traceback
        # It is told once; what does not depend on it has been computed.
        assert sound.tolist() == [2.0, 2.0]
        for lost in (wrong, later):
            with pytest.raises(RemoteError, match=r"embedding|index_select") as again:
                lost.get()
            assert str(again.value).count("holds no object") == 1  # the cause, not the chain
        with pytest.raises(RemoteError, match="failed on rank"):
            (later + 1).get()
        worker.wait()
        if len(workers) > 1:
            gone = later.copy(workers[0])
            with pytest.raises(RemoteError, match=f"failed on rank {worker.rank}"):
                (gone + 1).get()
            with pytest.raises(RemoteError, match=f"failed on rank {worker.rank}"):
                gone.get()
            workers[0].wait()

    lead(world, program)


def test_a_long_chain_behind_a_failure_does_not_grow() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(3))
        lost = torch.gather(x, 0, alice.send(torch.tensor([9])))
        for _ in range(1000):
            lost = lost + 1
        with pytest.raises(RemoteError, match="out of bounds"):
            alice.wait()
        with pytest.raises(RemoteError) as caught:
            lost.get()
        assert "gather failed on rank 1: index 9 is out of bounds" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_a_failure_nobody_waited_for_is_raised_at_the_end() -> None:
    def program() -> None:
        with fedmpi.simulate(1) as (alice,):
            torch.gather(alice.send(torch.ones(3)), 0, alice.send(torch.tensor([9])))

    with pytest.raises(RemoteError, match="out of bounds"):
        program()


def test_pointers_end_with_their_workers() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(3))
    for use in (x.get, lambda: x + 1, lambda: alice.send(torch.ones(1)), alice.objects, alice.wait):
        with pytest.raises(UsageError, match="belongs to a job that has ended"):
            use()
    assert repr(x) == "PointerTensor(rank 1, id 1, [3], float32)"
    with fedmpi.simulate(1) as (bob,):
        with pytest.raises(UsageError, match="belongs to a job that has ended"):
            x.copy(bob)
        assert bob.send(torch.ones(1)).tolist() == [1.0]
        bob.wait()
    with pytest.raises(UsageError, match="no workers"):
        fedmpi.workers()
    with pytest.raises(UsageError, match="workers = 0: expected at least 1"), fedmpi.simulate(0):
        pass


def test_an_error_of_the_program_passes_through() -> None:
    def program() -> None:
        with fedmpi.simulate(2) as (alice, _):
            x = alice.send(torch.ones(3))
            for _ in range(10):
                x + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program()


def test_inner_sessions_hide_the_outer_ones() -> None:
    with fedmpi.simulate(2) as outer:
        x = outer[0].send(torch.ones(2))
        with fedmpi.simulate(1) as inner:
            assert fedmpi.workers() == inner
            y = inner[0].send(torch.ones(2))
            with pytest.raises(UsageError, match="are on two workers"):
                x + y
        assert fedmpi.workers() == outer
        assert (x + 1).tolist() == [2.0, 2.0]


def test_memory_beyond_the_limit_is_refused_before_it_is_taken() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(1000))
        huge = x.new_zeros(10**15)
        with pytest.raises(RemoteError, match="4,000,000,000,000,000 more are beyond its limit"):
            huge.sum().get()
        alice.limit_memory(10_000)
        y = x * 2
        z = y + 1
        with pytest.raises(RemoteError, match="8,000 bytes of tensors, and 4,000 more are beyond"):
            z.get()
        with pytest.raises(RemoteError, match="beyond its limit of 10,000"):
            alice.send(torch.ones(1000)).get()
        assert float(y[:500].sum()) == 1000  # a view takes nothing
        del y
        assert float((x + 1).sum()) == 2000
        alice.limit_memory(10**6)
        del z
        assert float((x + x + x).sum()) == 3000


def test_nothing_is_kept_of_known_calls_beyond_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmpi.tensors.calls.MOST_KNOWN", 10)
    with fedmpi.simulate(2) as (alice, bob):
        for n in range(1, 60):
            x = alice.send(torch.ones(n))
            y = bob.send(torch.ones(n))
            assert float((x * 2).sum()) + float((y + 1).sum()) == 4 * n


def test_cycles_of_pointers_are_freed_by_the_collector() -> None:
    with fedmpi.simulate(1) as (alice,):
        x = alice.send(torch.ones(3))
        ring: list[object] = [x * 2]
        ring.append(ring)
        del ring
        gc.collect()
        assert len(alice.objects()) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_compute_with_as_many_threads_as_they_are_told(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = Callee.__call__

    def seeing(self: Callee, *arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return run(self, *arguments)

    monkeypatch.setattr(Callee, "__call__", seeing)
    before = torch.get_num_threads()
    with fedmpi.simulate(workers=2, threads=threads) as workers:
        for worker in workers:
            worker.send(torch.ones(3)).sum().get()
        assert torch.get_num_threads() == threads
    assert seen == [threads] * 2
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="threads = 0"), fedmpi.simulate(1, threads=0):
        pass
