"""Every operator on shares gives what it gives on plain tensors, forward and backward.

In process each case of `tests/spdz/cases.py` is a test of its own with two parties; those that
stand for a protocol run with 3, 5 and 7 as well. Under mpirun with n ranks all cases of a section
run with n - 1 parties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

import fedmpi
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.spdz.cases import SECTIONS, check
from tests.tensors.programs import lead

TWO = [(section, name) for section, cases in SECTIONS.items() for name in cases]
CORE = [(section, name) for section, name in TWO if SECTIONS[section][name].core]


@pytest.fixture(scope="module")
def two() -> Iterator[Sequence[RemoteWorker]]:
    with fedmpi.simulate(2) as workers:
        yield workers


@pytest.fixture(scope="module", params=[3, 5, 7])
def many(request: pytest.FixtureRequest) -> Iterator[Sequence[RemoteWorker]]:
    with fedmpi.simulate(request.param) as workers:
        yield workers


@pytest.mark.parametrize(("section", "name"), TWO)
def test_an_operator_on_shares_gives_the_same(
    two: Sequence[RemoteWorker], section: str, name: str
) -> None:
    check(name, SECTIONS[section][name], two)


@pytest.mark.parametrize(("section", "name"), CORE)
def test_any_number_of_parties_gives_the_same(
    many: Sequence[RemoteWorker], section: str, name: str
) -> None:
    check(name, SECTIONS[section][name], many)


@pytest.mark.mpi
@pytest.mark.parametrize("section", SECTIONS)
def test_the_ranks_of_mpirun_give_the_same(section: str) -> None:
    world = World(0)
    if world.size < 3:
        pytest.skip("one worker is not enough to share among")

    def program(workers: tuple[RemoteWorker, ...]) -> None:
        for name, case in SECTIONS[section].items():
            if case.core or len(workers) <= 3:
                check(name, case, workers)

    lead(world, program)
