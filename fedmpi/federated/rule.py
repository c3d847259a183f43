"""How the owner makes one update of many that it can look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedmpi.config import Config
from fedmpi.federated.strategy import Cohort


class Rule:
    """The weighted mean, and the base of robust rules.

    A rule that `looks` is shown all updates first, block by block of columns; then it gives the
    clients' weights. One that combines `by_coordinate` gives no weights: it is shown the blocks
    (once more) and gives the mean's columns itself. Blocks are float32 [clients, columns] on the
    CPU with the clients in the order of the cohort; how wide they are depends on the number of
    clients alone, so that a rule has the same bits on any number of ranks. Integers of the state
    (batch norm's counters) are not looked at: in a distance they would outweigh all weights.

    Args:
        config: of the job.

    Attributes:
        looks, by_coordinate: see above.
    """

    looks = False
    by_coordinate = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def begin(self, cohort: Cohort, weights: list[float]) -> None:
        """A round; the weights are the strategy's and add up to 1."""
        self.cohort = cohort
        self.given = weights

    @property
    def bad(self) -> int:
        """f: how many of the round's clients may be bad."""
        return self.config.federated.robust.bad_among(len(self.cohort.clients))

    def look(self, columns: slice, block: torch.Tensor) -> None:
        """A block of the updates, in order of the columns."""

    def weights(self) -> list[float]:
        """Of each client in the sum, 0 or more."""
        return self.given

    def combine(self, columns: slice, block: torch.Tensor) -> torch.Tensor:
        """These columns of the mean, float64 [columns]."""
        raise NotImplementedError

    def finish(self, mean: torch.Tensor) -> torch.Tensor:
        """The round's update, float64 [numel], of what the weights or the blocks have given."""
        return mean

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What it carries to the next round, see `Remembers`."""
        return {}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave."""

    def findings(self) -> dict[str, Any]:
        """What there is to say of the round when it has ended: fields of `RoundMetrics`."""
        return {}
