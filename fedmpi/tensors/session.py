"""The workers of a program: those of an MPI launch, or threads of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import fedmpi.workers
from fedmpi.errors import UsageError
from fedmpi.tensors import calls
from fedmpi.tensors.link import Link
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.operate import Done, Threads

_sessions: list[tuple[RemoteWorker, ...]] = []


@contextmanager
def session(crew: Crew) -> Iterator[tuple[RemoteWorker, ...]]:
    """Makes a crew the one that `workers()` names; its pointers end with it."""
    links = [Link(crew, rank) for rank in crew.ranks]
    handles = tuple(RemoteWorker(link) for link in links)
    forgetting = [link.forget_signatures for link in links]
    _sessions.append(handles)
    calls.links_to_tell += forgetting
    try:
        yield handles
        # A failure that nobody waited for is still one.
        for link in links:
            link.clear()
    finally:
        _sessions.remove(handles)
        for forget in forgetting:
            calls.links_to_tell.remove(forget)
        for link in links:
            link.open = False


@contextmanager
def simulate(workers: int, threads: int = 1) -> Iterator[tuple[RemoteWorker, ...]]:
    """Workers as threads of this process, for a notebook or a test.

    Args:
        workers: how many.
        threads: PyTorch's for each worker, and inside for this thread, as for the ranks of
            `exec`: the bits of a result depend on it.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value < 1:
            raise UsageError(f"{name} = {value}: expected at least 1")
    before = torch.get_num_threads()
    try:
        with in_process_crew(workers) as crew, session(crew) as handles:
            use_threads(crew, threads)
            yield handles
    finally:
        torch.set_num_threads(before)


def use_threads(crew: Crew, threads: int) -> None:
    """Has all workers, and this thread, compute with so many threads of PyTorch; waits for them."""
    torch.set_num_threads(threads)
    crew.ask(lambda rank: Threads(threads), Done)


def workers() -> tuple[RemoteWorker, ...]:
    """The workers, in the order of their ranks.

    Raises:
        UsageError: there are none.
    """
    if not _sessions:
        raise UsageError(fedmpi.workers.NO_WORKERS)
    return _sessions[-1]


fedmpi.workers.of_the_program = workers


@contextmanager
def scope() -> Iterator[None]:
    """Frees all objects that are made inside, on every worker, though pointers may live on."""
    links = [worker.link for worker in workers()]
    before = {id(made): (made, made.last_key) for link in links for made in (link, *link.groups)}
    try:
        yield
    finally:
        since = before.values()
        for made, key in since:
            made.forget_since(key)
