"""Waiting gives back what was waited for, and leaves the core to others."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from fedmpi.comm.transport import Transport
from fedmpi.comm.waiting import LONGEST_EARLY_PAUSE, LONGEST_PAUSE, wait_until
from tests.comm.worlds import EVERY_WORLD, World

TAG = 40


@pytest.mark.parametrize("spin", [True, False])
@pytest.mark.parametrize("calls", [1, 2, 3, 500])
def test_it_returns_the_first_result(spin: bool, calls: int) -> None:
    asked = 0

    def ready() -> str | None:
        nonlocal asked
        asked += 1
        return "here" if asked == calls else None

    assert wait_until(ready, spin) == "here"
    assert asked == calls


@pytest.mark.parametrize("nothing", [0, "", False, ()])
def test_only_none_means_not_yet(nothing: object) -> None:
    assert wait_until(lambda: nothing, spin=True) is nothing


def test_an_error_ends_the_wait() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0, spin=False)


@pytest.mark.parametrize("spin", [True, False])
def test_pauses_grow_to_a_limit(spin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own, on which nothing but the pauses takes time."""
    now, pauses = 0.0, []

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    monkeypatch.setattr("fedmpi.comm.waiting.time.perf_counter", clock)
    monkeypatch.setattr("fedmpi.comm.waiting.time.sleep", sleep)
    wait_until(lambda: True if now > 2 else None, spin)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    assert len(pauses) < 1.5 * 2 / LONGEST_PAUSE  # those that grow are a third


@pytest.mark.parametrize("expected", [0.1, 1.0, 10.0])
def test_what_is_expected_late_is_hardly_looked_for_early(
    expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        looks.append(now)

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    monkeypatch.setattr("fedmpi.comm.waiting.time.perf_counter", clock)
    monkeypatch.setattr("fedmpi.comm.waiting.time.sleep", sleep)
    wait_until(lambda: True if now > expected else None, True, expected)
    early = [look for look in looks if look < 0.85 * expected]
    assert len(early) <= 0.85 * expected / min(0.05 * expected, LONGEST_EARLY_PAUSE) + 1
    assert max(b - a for a, b in pairwise(looks)) <= LONGEST_EARLY_PAUSE + 1e-5
    assert now - expected <= LONGEST_PAUSE + 1e-5


@pytest.mark.parametrize("world", [EVERY_WORLD[0], EVERY_WORLD[-1]], indirect=True)
def test_a_waiting_rank_costs_little(world: World) -> None:
    """All but rank 0 wait 2 s for a note, on less than a tenth of that in processor time."""

    def scenario(transport: Transport) -> float:
        if transport.rank == 0:
            time.sleep(2)
            for rank in range(1, transport.size):
                transport.finish(transport.send_note(b"now", rank, TAG))
            return 0.0
        begun = time.thread_time()
        assert transport.wait(lambda: transport.poll_note(0, TAG, 10)) == (0, b"now")
        return time.thread_time() - begun

    before = time.process_time()
    spent = world.run(scenario)
    assert max(spent.values()) < 0.2
    if not world.threads:
        assert time.process_time() - before < 0.2  # the MPI library has no busy threads either


@pytest.mark.parametrize("spin", [True, False])
def test_polling_by_itself_costs_little(spin: bool) -> None:
    until, begun = time.monotonic() + 1, time.thread_time()
    wait_until(lambda: True if time.monotonic() > until else None, spin)
    assert time.thread_time() - begun < 0.1
