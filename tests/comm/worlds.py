"""The same scenario on every transport: threads of one process, and the ranks of mpirun.

    def test_something(world: World) -> None:
        def scenario(transport: Transport) -> None: ...

        world.run(scenario)

Without mpirun such a test runs on 2, 3, 4 and 8 threads; under mpirun (marked `mpi`) once,
on all ranks.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport
from fedmpi.comm.threads import Aborted, Hub
from fedmpi.comm.transport import Transport
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.worker import Worker

T = TypeVar("T")

SIZES = (2, 3, 4, 8)
LIMIT = 120
"""Seconds after which threads that still run have hung."""


@functools.cache
def mpi_transport() -> MpiTransport:
    """One for the whole session, since it duplicates the world's communicator."""
    return MpiTransport(launched())


_SENT: Counter[tuple[int, Channel]] = Counter()
_RECEIVED: Counter[tuple[int, Channel]] = Counter()


def endpoint_on(transport: Transport) -> Endpoint:
    """A new one; under mpirun it goes on counting: what a test leaves on its way comes later."""
    endpoint = Endpoint(transport)
    if not transport.in_process:
        endpoint._sent, endpoint._received = _SENT, _RECEIVED
    return endpoint


class World:
    """Ranks that can run a scenario.

    Args:
        threads: number of ranks; 0: those of mpirun, this process being one.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.size = threads or mpi_transport().size

    def run(self, scenario: Callable[[Transport], T]) -> dict[int, T]:
        """Runs it on every rank; what it returns by rank, of the ranks of this process."""
        if not self.threads:
            transport = mpi_transport()
            return {transport.rank: scenario(transport)}
        return run_threads(Hub(self.size), scenario)

    def lead(self, scenario: Callable[[Crew], T]) -> T | None:
        """Runs it on rank 0 while the other ranks are workers; None on those."""
        if self.threads:
            with in_process_crew(self.size - 1) as crew:
                return scenario(crew)
        endpoint = endpoint_on(mpi_transport())
        if endpoint.rank:
            assert Worker(endpoint).serve() == 0
            return None
        crew = Crew(endpoint)
        result = scenario(crew)  # when it fails, conftest.py ends the waiting workers
        assert not crew.busy, "the scenario must wait for its commands"
        crew.stop(0)
        return result


def run_threads(hub: Hub, scenario: Callable[[Transport], T]) -> dict[int, T]:
    """Runs the scenario on one thread for each rank; an error of any of them is raised here."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def serve(rank: int) -> None:
        try:
            results[rank] = scenario(hub.transport(rank))
        except Aborted:
            pass
        except BaseException as error:
            errors.append(error)
            hub.abort(1)

    ranks = [threading.Thread(target=serve, args=(rank,), daemon=True) for rank in range(hub.size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(LIMIT)
    if errors:
        raise errors[0]
    stuck = [rank for rank, thread in enumerate(ranks) if thread.is_alive()]
    hub.abort(1)
    assert not stuck, f"ranks {stuck} of {hub.size} still wait"
    return results


EVERY_WORLD = [
    *(pytest.param(n, id=f"{n}-threads") for n in SIZES),
    pytest.param(0, id="mpirun", marks=pytest.mark.mpi),
]


@pytest.fixture(params=EVERY_WORLD)
def world(request: pytest.FixtureRequest) -> World:
    """Every transport and number of ranks."""
    return World(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for files; a world's owner passes its own on to its workers."""
    with TemporaryDirectory(prefix="fedmpi-test-") as name:
        yield Path(name)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal in dtype, shape and every byte: NaN, -0.0 and the float8s included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return torch.equal(byte_view(found), byte_view(expected))


def byte_view(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, as a vector; conjugate views are worked out."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
