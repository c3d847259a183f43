"""The cost model: its formulas against counting, its loads against drawing, its fit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedmpi.comm.collective import place
from fedmpi.federated.placement import spread
from fedmpi.study.cost_model import Link, Machine, collective, depth, even, load, terms, turns
from fedmpi.study.fit import fit


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8, 9, 64, 65, 1000])
def test_the_depth_is_that_of_the_tree_that_vectors_travel(ranks: int) -> None:
    group = range(ranks)
    assert len(place(0, group, "tree").children) == depth(ranks)
    levels = {0: 0}
    for rank in group[1:]:
        parent = place(rank, group, "tree").parent
        assert parent is not None
        levels[rank] = levels[parent] + 1
    assert max(levels.values()) == (ranks).bit_length() - 1 <= depth(ranks)


def test_terms_count_chunks_and_bytes_along_the_longest_chain() -> None:
    wide = Machine(ranks=9, nodes=1, cores=16)
    assert terms(1000, 100, "tree", wide) == (4 * 10, 4 * 1000)
    assert terms(1001, 100, "star", wide) == (8 * 11, 8 * 1001)
    assert terms(0, 100, "tree", wide) == (4, 0)
    assert collective(1000, 100, "tree", wide, Link(1e-6, 1e-9)) == pytest.approx(44e-6)


def test_ranks_that_share_cores_take_turns() -> None:
    assert turns("tree", Machine(8, 1, 8)) == 3
    assert turns("tree", Machine(8, 1, 2)) == 3.5
    assert turns("tree", Machine(8, 4, 2)) == 3
    assert turns("star", Machine(8, 1, 2)) == 7


@pytest.mark.parametrize(
    ("clients", "cohort", "workers"), [(28, 14, 7), (30, 7, 7), (1000, 100, 50), (64, 64, 10)]
)
def test_the_expected_load_is_what_random_cohorts_give(
    clients: int, cohort: int, workers: int
) -> None:
    draws = np.random.default_rng(0)
    owner = np.arange(clients) % workers
    counts = [
        np.bincount(owner[draws.permutation(clients)[:cohort]], minlength=workers)
        for _ in range(3000)
    ]
    found = load(clients, cohort, workers, "fixed")
    assert found.largest == pytest.approx(np.mean([c.max() for c in counts]), rel=0.07)
    assert found.busy == pytest.approx(np.mean([(c > 0).sum() for c in counts]), rel=0.02)
    assert found.mean * found.busy == pytest.approx(cohort)
    poisson = load(clients, cohort, workers, "poisson")
    drawn = [np.bincount(owner[draws.random(clients) < cohort / clients]) for _ in range(3000)]
    assert poisson.largest == pytest.approx(np.mean([c.max() for c in drawn if len(c)]), rel=0.03)


@pytest.mark.parametrize(("cohort", "workers"), [(10, 2), (10, 3), (2, 7), (1, 1), (64, 10)])
def test_the_even_load_is_what_the_owner_settles(cohort: int, workers: int) -> None:
    ranks = range(1, workers + 1)
    holder = dict.fromkeys(range(cohort), 1)
    placed = spread(range(cohort), dict.fromkeys(range(cohort), 600), holder, ranks)
    counts = Counter(placed.values())
    found = even(cohort, workers)
    assert found.largest == max(counts.values())
    assert found.busy == len(counts)
    assert found.mean * found.busy == pytest.approx(cohort)


def test_the_load_of_one_worker_is_the_whole_cohort() -> None:
    assert load(10, 5, 1, "fixed").largest == pytest.approx(5)
    assert load(1_000_000, 100_000, 1023, "fixed").largest < 1000


def test_a_fit_finds_the_link_that_made_the_times() -> None:
    factors = [(m, n) for m in (1, 3, 40) for n in (8, 1e4, 1e7)]
    seconds = [7e-6 * m + 2e-10 * n for m, n in factors]
    found = fit(factors, seconds)
    assert (found.link.alpha, found.link.beta) == pytest.approx((7e-6, 2e-10))
    assert found.worst < 1e-9


def test_a_fit_is_never_below_zero_and_says_how_far_it_is_off() -> None:
    found = fit([(1, 10), (1, 1000)], [1e-3, 1e-6])
    assert min(found.link.alpha, found.link.beta) >= 0
    assert found.worst > 0.5
    noisy = [1.1 * 1e-6, 0.9 * 2e-6, 1.1 * 3e-6]
    assert 0 < fit([(1, 0), (2, 0), (3, 0)], noisy).worst < 0.2
