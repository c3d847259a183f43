"""Rules that look at the distances between updates."""

from __future__ import annotations

import torch

from fedmpi.federated.robust.distances import Distances
from fedmpi.federated.rule import Rule
from fedmpi.federated.strategy import Cohort


class ByDistances(Rule):
    """Keeps the distances between all pairs of updates of a round."""

    looks = True

    def begin(self, cohort: Cohort, weights: list[float]) -> None:
        super().begin(cohort, weights)
        self._distances = Distances(len(weights))

    def look(self, columns: slice, block: torch.Tensor) -> None:
        self._distances.add(block)
