"""Every transport, and parties in one process, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

import fedmpi
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import folder, world

__all__ = ["folder", "world"]


@pytest.fixture(scope="module", params=[2, 3])
def parties(request: pytest.FixtureRequest) -> Iterator[Sequence[RemoteWorker]]:
    with fedmpi.simulate(request.param) as workers:
        yield workers
