"""Bulyan: a selection by Krum, of which every coordinate takes the values near the median."""

from __future__ import annotations

import torch

from fedmpi.federated.robust.by_distances import ByDistances
from fedmpi.federated.robust.coordinates import median_of, sort_clients
from fedmpi.federated.robust.krum import krum_scores
from fedmpi.federated.strategy import Cohort


class Bulyan(ByDistances):
    """El Mhamdi et al. 2018 ("The hidden vulnerability of distributed learning in Byzantium").

    Krum chooses theta = n - 2f updates one after another, each time among those that are left.
    The result is, of every coordinate, the mean of the beta = theta - 2f values of these that
    are nearest to their median. All clients weigh the same.
    """

    by_coordinate = True

    def begin(self, cohort: Cohort, weights: list[float]) -> None:
        super().begin(cohort, weights)
        self._chosen: list[int] = []

    def combine(self, columns: slice, block: torch.Tensor) -> torch.Tensor:
        if not self._chosen:
            self._chosen = choose(self._distances.squared(), self.bad)
        ascending = sort_clients(block[self._chosen])
        return mean_near_median(ascending, len(self._chosen) - 2 * self.bad)


def choose(squared: torch.Tensor, bad: int) -> list[int]:
    """The n - 2f rows that Krum chooses one after another, ascending.

    Args:
        squared: distances, float64 [n, n].
        bad: f.
    """
    left = list(range(len(squared)))
    chosen = []
    for _ in range(len(squared) - 2 * bad):
        scores = krum_scores(squared[left][:, left], bad)
        chosen.append(left.pop(int(scores.argmin())))
    return sorted(chosen)


def mean_near_median(ascending: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of the `count` values of each column nearest to its median, float64 [columns].

    In a sorted column these stand side by side. Their first place moves up from k to k + 1 if the
    value at k is farther from the median than the one at k + count, which can be so only if
    it was so for all lower places: the first place is the number of those. Of values that are
    as far, the smaller is taken.

    Args:
        ascending: sorted columns, float32 [rows, columns].
        count: 1 to the number of rows.
    """
    wide = ascending.double()
    median = median_of(ascending)
    below = median - wide[: len(wide) - count]
    above = wide[count:] - median
    first = (below > above).sum(0)
    place = torch.arange(len(wide))[:, None]
    near = (place >= first) & (place < first + count)
    return wide.masked_fill_(~near, 0.0).sum(0).div_(count)
