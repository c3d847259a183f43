"""Failures in the middle of secure computations: all parties stop with a sentence, none hangs, and
the session works afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.spdz.turn import DealerTurn
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.launch import Launcher, each_launcher, launchers
from tests.tensors.programs import lead

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]

INLINE, LARGE = 5, 40_000
"""Elements: in a frame's header, and beside it, where a sender waits for its memory."""


def lose(worker: RemoteWorker, tensor: Any) -> None:
    """One party's share is gone."""
    worker.link.dead.append(secret_of(tensor).share.remote.key)
    worker.link.flush()


def assert_works(workers: Workers, n: int = LARGE) -> None:
    for worker in workers:  # what was noted and not told yet
        with contextlib.suppress(RemoteError):
            worker.wait()
    x = share(torch.full((n,), 1.5), *workers)
    assert torch.equal((torch.relu(x) * x).reveal(), torch.full((n,), 2.25))  # type: ignore


@pytest.mark.parametrize("n", [INLINE, LARGE])
def test_a_party_without_its_share(world: World, n: int) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        for broken in {workers[0], workers[1], workers[-1]}:
            x, y = share(torch.ones(n), *workers), share(torch.ones(n), *workers)
            x * x
            lose(broken, y)
            z = torch.relu(y * x)  # and so on, with nobody waiting
            for _ in range(3):
                z = z * x + y
            with pytest.raises(RemoteError, match=rf"rank {broken.rank} (holds no|has given up)"):
                z.reveal()  # type: ignore[attr-defined]
            assert (x + x).reveal()[0] == 2  # type: ignore[attr-defined]
            assert_works(workers, n)

    lead(world, program)


@pytest.mark.parametrize("n", [INLINE, LARGE])
def test_a_party_that_fails_in_the_middle_of_a_plan(world: World, n: int) -> None:
    @fedmpi.plan
    def step(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x * x) * y + x * y

    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        for broken in {workers[0], workers[-1]}:
            x, y = share(torch.ones(n), *workers), share(torch.ones(n), *workers)
            assert step(x, y).reveal()[0] == 2
            broken.limit_memory(broken.nbytes() + 4 * n)  # too little for the result
            z = step(x, y)
            with pytest.raises(RemoteError, match=r"beyond its limit|given up"):
                z.reveal()
            broken.limit_memory(2**34)
            assert_works(workers, n)
            assert step(x, y).reveal()[0] == 2

    lead(world, program)


def test_a_dealer_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        x = share(torch.ones(LARGE), *workers)
        with monkeypatch.context() as patch:

            def fails(self: DealerTurn, *_: Any) -> None:
                raise ValueError("no material")

            patch.setattr(DealerTurn, "others", fails)
            with pytest.raises(ValueError, match="no material"):
                x * 2.5
        with pytest.raises(RemoteError, match="dealer failed: no material"):
            workers[-1].wait()
        assert_works(workers)

    lead(world, program)


def test_two_groups_of_one_worker() -> None:
    """What one group leaves behind spoils nothing of the other, whose frames come the same way."""
    with fedmpi.simulate(4) as workers:
        one, other = workers[:3], workers[1:]
        x, y = share(torch.ones(LARGE), *one), share(torch.ones(LARGE), *other)
        both = share(torch.ones(LARGE), *workers[1:3])
        for _ in range(2):
            lost = share(torch.ones(LARGE), *one)
            lose(workers[1], lost)
            failed = lost * x
            fine, too = y * y + 1, both * both + 1
            with pytest.raises(RemoteError):
                failed.reveal()  # type: ignore[attr-defined]
            for worker in workers:
                with contextlib.suppress(RemoteError):
                    worker.wait()
            assert fine.reveal()[0] == 2  # type: ignore[attr-defined]
            assert too.reveal()[0] == 2  # type: ignore[attr-defined]
        assert_works(one)
        assert_works(other)


def test_a_run_that_was_dealt_for_beforehand_and_fails(tmp_path: Path) -> None:
    """Its number is larger than those of all calls to come: what is left of it is dropped."""
    from fedmpi.spdz.material import deal

    @fedmpi.plan(masks_outside=False)
    def step(x: Tensor) -> Tensor:
        return torch.relu(x * x) * x

    with fedmpi.simulate(3) as workers:
        x = share(torch.ones(LARGE), *workers)
        plan = step.record(x)
        deal(plan, tmp_path / "material", parties=3, runs=4)
        with fedmpi.material(tmp_path / "material", *workers) as material:
            assert step(x).reveal()[0] == 1
            gone = share(torch.ones(LARGE), *workers)
            lose(workers[1], gone)
            with pytest.raises(RemoteError, match="rank 2"):
                step(gone).reveal()
            assert_works(workers)
            assert step(x).reveal()[0] == 1
            assert material.taken == 3
        assert_works(workers)


def test_a_run_is_not_drawn_for_twice(tmp_path: Path) -> None:
    """A file that is put back would deal the same masks for other values."""
    from fedmpi.spdz.material import deal

    @fedmpi.plan(masks_outside=False)
    def step(x: Tensor) -> Tensor:
        return x * x

    with fedmpi.simulate(2) as workers:
        x = share(torch.full((3,), 2.0), *workers)
        path, old = tmp_path / "material", tmp_path / "old"
        deal(step.record(x), path, parties=2, runs=2)
        old.write_bytes(path.read_bytes())
        old.chmod(0o600)
        with fedmpi.material(path, *workers):
            step(x), step(x).reveal()
        with (
            pytest.raises(RemoteError, match="numbers rise"),
            fedmpi.material(old, *workers),
        ):
            step(x + 1).reveal()
        assert_works(workers)


def test_a_wait_sends_what_the_waited_for_wait_for() -> None:
    """carol waits for alice's pointer, alice for bob's opening, and bob's call is still here."""
    with fedmpi.simulate(3) as (alice, bob, carol):
        pointer, x = alice.send(torch.ones(2)), share(torch.ones(2), alice, bob)
        for _ in range(20):
            x * x.clone()
            assert pointer.copy(carol).get().tolist() == [1.0, 1.0]


def test_a_worker_that_is_no_party() -> None:
    with fedmpi.simulate(3) as workers:
        x = share(torch.ones(2), *workers[:2])
        with fedmpi.simulate(2) as others, pytest.raises(UsageError, match="job"):
            share(others[0].send(torch.ones(2)), *workers[:2])
        assert x.reveal().tolist() == [1.0, 1.0]
        assert_works(workers[:2])


SCRIPT = """
import os, signal, sys, torch, fedmpi as fm
from fedmpi.errors import RemoteError

workers = fm.workers()
x, y = (fm.share(torch.ones(40_000), *workers) for _ in range(2))
x * x
workers[1].link.dead.append(y.secret.share.remote.key)
try:
    torch.relu(y * x).reveal()
except RemoteError as error:
    print("told:", error, flush=True)
for worker in workers:
    try:
        worker.wait()
    except RemoteError:
        pass
print("after:", float((x * x).reveal().sum()), flush=True)
"""


@pytest.fixture(params=sorted(launchers()) or [pytest.param("", marks=pytest.mark.skip("no MPI"))])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Each of the launchers in turn."""
    return launchers()[request.param]


@pytest.mark.launch
@each_launcher(quick="mpich")
def test_a_failure_over_mpi(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(SCRIPT)
    done = launcher.run(4, ["-m", "fedmpi", "exec", script], timeout=60)
    assert done.returncode == 0, done.stderr
    assert "told: worker on rank" in done.stdout
    assert "after: 40000.0" in done.stdout


@pytest.mark.launch
@each_launcher(quick="openmpi")
def test_a_party_that_dies(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    killing = (
        "import psutil\n"
        + SCRIPT.partition("x, y =")[0]
        + """
x = fm.share(torch.ones(40_000), *workers)
x.reveal()
for child in psutil.process_iter(["environ", "cmdline"]):
    environment = child.info["environ"] or {}
    ours = environment.get("FEDMPI_LAUNCH_ID") == os.environ["FEDMPI_LAUNCH_ID"]
    rank = environment.get("PMI_RANK") or environment.get("OMPI_COMM_WORLD_RANK")
    if ours and rank == "2" and "exec" in (child.info["cmdline"] or []):
        child.kill()
for _ in range(1000):
    x = torch.relu(x * x)
    x.reveal()
"""
    )
    script.write_text(killing)
    done = launcher.run(4, ["-m", "fedmpi", "exec", script], timeout=60)
    assert done.returncode != 0
    assert "fedmpi: rank 0 was ended from outside, or because another rank was lost" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
