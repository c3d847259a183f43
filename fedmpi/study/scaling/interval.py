"""The median and its confidence interval, without assuming a distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median, and between which values that of the whole population lies.

    Attributes:
        median: of the sample.
        low, high: two of the sample's values.
        confidence: probability that they enclose the population's median; below `CONFIDENCE` if
            the sample is too small for that.
    """

    median: float
    low: float
    high: float
    confidence: float


def median_interval(sample: Sequence[float]) -> Interval:
    """The median with the narrowest symmetric interval of at least `CONFIDENCE`.

    Of n independent values, sorted, the k-th smallest and the k-th largest enclose the median with
    probability 1 - 2 P(B < k), B ~ Binomial(n, 1/2). Below six values not even the smallest and the
    largest reach 95 %; they are given with what they do reach.

    Source: Le Boudec, Performance Evaluation of Computer and Communication Systems (2010), theorem
    2.1; asked for by Hoefler and Belli, Scientific Benchmarking of Parallel Computing Systems
    (SC'15), section 3.1.3, rule 5.

    Raises:
        ValueError: the sample is empty.
    """
    values = sorted(sample)
    n, k = len(values), 1
    while 2 * (k + 1) <= n and _confidence(n, k + 1) >= CONFIDENCE:
        k += 1
    middle = statistics.median(values)  # of nothing: StatisticsError, which is a ValueError
    return Interval(middle, values[k - 1], values[n - k], max(_confidence(n, k), 0.0))


def _confidence(n: int, k: int) -> float:
    """Probability that the k-th smallest and the k-th largest of n enclose the median."""
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
