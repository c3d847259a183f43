"""What a run keeps so that it can go on after it was ended, [checkpoint]."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedmpi.config.checks import require


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a run.

    By default one every five minutes: a run that is killed loses that much and no more, and what it
    costs cannot be measured. A short run writes the one at its end alone. With both intervals at 0
    there are none, but for the one that is written when a signal asks the run to leave.
    """

    every_rounds: int = 0
    """Write a checkpoint every k rounds, and after the last; 0: by the clock alone."""
    every_minutes: float = 5.0
    """Write a checkpoint after the first round that ends so long after the one before, and after
    the last; 0: not by the clock."""
    keep: int = 2
    """Checkpoints that are kept: the newest, and those before it in case it is damaged."""

    def __post_init__(self) -> None:
        require(
            0 <= self.every_rounds <= 10_000_000,
            "checkpoint.every_rounds",
            self.every_rounds,
            "0 to 10,000,000 rounds",
        )
        require(
            math.isfinite(self.every_minutes) and 0 <= self.every_minutes <= 1e6,
            "checkpoint.every_minutes",
            self.every_minutes,
            "0 to 1e6 minutes",
        )
        require(1 <= self.keep <= 1000, "checkpoint.keep", self.keep, "1 to 1000 checkpoints")
