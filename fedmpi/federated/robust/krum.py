"""Krum and Multi-Krum: updates that are near to many others."""

from __future__ import annotations

import numpy as np
import torch

from fedmpi.federated.robust.by_distances import ByDistances


def krum_scores(squared: torch.Tensor, bad: int) -> torch.Tensor:
    """The sum of the squared distances to the n - f - 2 nearest others, float64 [n].

    Blanchard et al. 2017, section 4. Where fewer than f + 3 are there, the nearest alone counts.

    Args:
        squared: distances, float64 [n, n].
        bad: f.
    """
    n = len(squared)
    # The first of each row is the distance from itself, or another 0.
    others = torch.from_numpy(np.sort(squared.numpy(), axis=1))[:, 1:]
    return others[:, : max(n - bad - 2, 1)].sum(1)


class MultiKrum(ByDistances):
    """The mean of the n - f - 2 updates with the lowest scores, all of the same weight.

    Blanchard et al. 2017, with the largest number of updates for which Damaskinos et al. 2019
    ("AggregaThor") prove it safe. Among equal scores the lower client goes first.
    """

    def weights(self) -> list[float]:
        scores = krum_scores(self._distances.squared(), self.bad)
        chosen = scores.argsort(stable=True)[: self._count(len(scores))]
        weights = torch.zeros_like(scores)
        weights[chosen] = 1 / len(chosen)
        return weights.tolist()

    def _count(self, n: int) -> int:
        return max(n - self.bad - 2, 1)


class Krum(MultiKrum):
    """The one update with the lowest score (Blanchard et al. 2017, section 4)."""

    def _count(self, n: int) -> int:
        return 1
