import random

import pytest

from fedmpi.study.scaling.interval import median_interval


@pytest.mark.parametrize(
    ("n", "k", "confidence"),
    [(1, 1, 0.0), (5, 1, 0.9375), (6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.9586105)],
)
def test_ranks_of_the_table(n: int, k: int, confidence: float) -> None:
    """As in Le Boudec's table of intervals for the median (appendix A)."""
    found = median_interval(list(range(1, n + 1)))
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.confidence == pytest.approx(confidence)
    assert found.median == (n + 1) / 2


def test_it_encloses_the_median_as_often_as_it_says() -> None:
    draw = random.Random(1)
    intervals = [median_interval([draw.expovariate(1.0) for _ in range(9)]) for _ in range(4000)]
    hits = sum(i.low <= 0.6931 <= i.high for i in intervals) / len(intervals)
    assert hits == pytest.approx(intervals[0].confidence, abs=0.012)


def test_nothing() -> None:
    with pytest.raises(ValueError):
        median_interval([])
