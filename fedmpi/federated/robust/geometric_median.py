"""Robust federated aggregation (RFA): the geometric median of the updates."""

from __future__ import annotations

import torch

from fedmpi.federated.robust.by_distances import ByDistances
from fedmpi.federated.robust.distances import from_combination

ITERATIONS = 100
"""Many, as they cost little beside the distances."""
SMOOTHING = 1e-6
"""Distance below which a client's weight grows no more: nu of the paper, and its value."""


class GeometricMedian(ByDistances):
    """The point with the smallest sum of distances from the updates, by the strategy's weights.

    Pillutla et al. 2022 ("Robust aggregation for federated learning": the smoothed Weiszfeld
    algorithm). Each of its points is a weighted mean of the updates, so that it is
    enough to follow the weights.
    """

    def weights(self) -> list[float]:
        squared = self._distances.squared()
        given = torch.tensor(self.given, dtype=torch.float64)
        found = given
        for _ in range(self.config.federated.robust.iterations or ITERATIONS):
            pull = given / from_combination(squared, found).clamp_min_(SMOOTHING)
            found = pull / pull.sum()
        return found.tolist()
