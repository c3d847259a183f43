"""Rules that bound how far one client can move the mean."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low

import torch

from fedmpi.federated.robust.distances import Distances, from_combination
from fedmpi.federated.rule import Rule
from fedmpi.federated.strategy import Cohort


def shrink(norms: torch.Tensor, bound: float) -> torch.Tensor:
    """Factors, at most 1, that bring the norms down to the bound; float64, as the norms."""
    return torch.where(norms > bound, bound / norms, 1.0)


class NormClipping(Rule):
    """The mean of updates whose norms are brought down to a bound, by the strategy's weights.

    Sun et al. 2019 ("Can you really backdoor federated learning?"). Without a bound
    from the configuration it is the lower median of the round's norms.
    """

    looks = True

    def begin(self, cohort: Cohort, weights: list[float]) -> None:
        super().begin(cohort, weights)
        self._squared = torch.zeros(len(weights), dtype=torch.float64)

    def look(self, columns: slice, block: torch.Tensor) -> None:
        self._squared += torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square_()

    def weights(self) -> list[float]:
        norms = self._squared.sqrt()
        bound = self.config.federated.robust.clip or median_low(norms.tolist())
        given = torch.tensor(self.given, dtype=torch.float64)
        return (given * shrink(norms, bound)).tolist()


class CentredClipping(Rule):
    """Clipping around the result v of the round before, which is 0 in the first.

    Karimireddy et al. 2021 ("Learning from history for Byzantine robust optimization"):
    v + mean of (x_i - v) min(1, radius / |x_i - v|), repeated. All clients weigh the same. Every
    such point is a combination of v and the updates, so that it is enough to follow its
    coefficients. Without a radius from the configuration it is the lower median of the round's
    distances from v.
    """

    looks = True

    _last: torch.Tensor | None = None  # float64 [numel] on the CPU

    def begin(self, cohort: Cohort, weights: list[float]) -> None:
        super().begin(cohort, weights)
        self._distances = Distances(1 + len(weights))

    def look(self, columns: slice, block: torch.Tensor) -> None:
        last = self._last
        row = torch.zeros_like(block[0]) if last is None else last[columns]
        self._distances.add(torch.cat([row[None], block.to(row.dtype)]))

    def weights(self) -> list[float]:
        robust = self.config.federated.robust
        squared = self._distances.squared()
        n = len(squared) - 1
        radius = robust.clip or median_low(squared[0, 1:].sqrt().tolist())
        found = torch.zeros(1 + n, dtype=torch.float64)
        found[0] = 1.0
        for _ in range(robust.iterations or 1):
            step = shrink(from_combination(squared, found)[1:], radius) / n
            found *= 1 - step.sum()
            found[1:] += step
        self._of_last = float(found[0])
        return found[1:].tolist()

    def finish(self, mean: torch.Tensor) -> torch.Tensor:
        if self._last is not None:
            mean.add_(self._last.to(mean.device), alpha=self._of_last)
        self._last = mean.to("cpu", copy=True)
        return mean

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The result of the round before; without elements before the first."""
        return {"last": torch.empty(0) if self._last is None else self._last}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        last = saved["last"]
        self._last = last.clone() if last.numel() else None
