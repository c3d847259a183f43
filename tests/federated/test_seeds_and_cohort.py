"""Random draws depend on the seed and on their place, and on nothing else."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.federated.cohort import cohort_of_round
from fedmpi.federated.seeds import derive, generator


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, "model"), 1977141789342320418),
        ((0, "cohort", 1), 1858723903447637163),
        ((1, "cohort", 1), 3170058483229333245),
        ((0, "shuffle", 1, 0), 1089117599910232940),
        ((0, "shuffle", 1, 1), 8829421695284274644),
        ((0, "shuffle", 11, 0), 5375052863851551979),
        ((0, "dropout", 1, 0), 5047412505042793085),
        ((2**63 - 1, "shuffle", 10**7, 10**7 - 1), 3323299681890424547),
    ],
)
def test_golden_seeds(arguments: tuple, expected: int) -> None:
    """Who changes one of these changes the result of every run that anybody has made."""
    assert derive(*arguments) == expected


@given(
    st.integers(0, 2**63 - 1),
    st.sampled_from(["model", "shuffle"]),
    st.lists(st.integers(0, 10**7)),
)
def test_a_seed_is_63_bits_of_blake2b(seed: int, purpose: str, place: list[int]) -> None:
    found = derive(seed, purpose, *place)
    assert 0 <= found < 2**63  # what torch.manual_seed and PCG64 take
    text = ":".join(map(str, [seed, purpose, *place]))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert found == int.from_bytes(digest, "little") // 2


def test_no_two_places_share_a_seed() -> None:
    found = {
        derive(seed, purpose, number, client)
        for seed in range(4)
        for purpose in ("shuffle", "dropout", "cohort")
        for number in range(30)
        for client in range(30)
    }
    assert len(found) == 4 * 3 * 30 * 30


def test_a_golden_draw() -> None:
    assert generator(0, "cohort", 1).permutation(10).tolist() == [1, 0, 2, 3, 4, 9, 8, 7, 6, 5]
    assert cohort_of_round(0, 1, range(10), 0.5) == [1, 0, 2, 3, 4]


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 10**6),
    st.integers(1, 400),
    st.floats(1e-9, 1, exclude_min=False),
)
def test_a_cohort_is_a_set_of_its_size(seed: int, number: int, count: int, fraction: float) -> None:
    clients = list(range(7, 7 + 3 * count, 3))  # ids need not be 0 to K - 1
    cohort = cohort_of_round(seed, number, clients, fraction)
    assert len(cohort) == len(set(cohort)) == max(round(fraction * count), 1)
    assert set(cohort) <= set(clients)
    assert cohort == cohort_of_round(seed, number, clients, fraction)
    if len(cohort) == count:
        assert sorted(cohort) == clients


def test_every_client_is_drawn_equally_often_at_every_place() -> None:
    """Counts within five standard deviations; the seed is fixed, so this never flickers."""
    rounds, count, size = 4000, 20, 5
    drawn, led = [0] * count, [0] * count
    for number in range(1, rounds + 1):
        cohort = cohort_of_round(3, number, range(count), size / count)
        led[cohort[0]] += 1
        for client in cohort:
            drawn[client] += 1
    for counts, share in ((drawn, size / count), (led, 1 / count)):
        spread = math.sqrt(rounds * share * (1 - share))
        assert all(abs(n - rounds * share) < 5 * spread for n in counts)


def test_rounds_and_seeds_draw_different_cohorts() -> None:
    drawn = {
        tuple(cohort_of_round(seed, n, range(30), 0.5)) for seed in range(5) for n in range(40)
    }
    assert len(drawn) == 200
