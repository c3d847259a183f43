"""What a worker adds up over its clients of a round, beside their updates."""

from __future__ import annotations

from decimal import Decimal

import msgspec

LOSS_UNIT = 2.0**20
"""Losses are summed as integers, this many to one, so that their mean has the same bits too."""


class LeftOut(msgspec.Struct, frozen=True):
    """A client whose update is not in the sum."""

    client: int
    reason: str


class Tally(msgspec.Struct):
    """What a worker adds up over its clients of a round.

    Attributes:
        loss: sum over included clients of rows x mean loss, in units of 1 / LOSS_UNIT: an
            integer, which may be longer than 64 bits.
        left_out: clients that are not in the sum because their updates cannot be used.
        dropped: clients that are not in the sum because they dropped out.
        train_seconds: copying the model, reading the rows and the local steps.
        sum_seconds: adding the updates and masking the sum.
        mask_seconds: of these, dealing secrets and expanding masks.
    """

    loss: Decimal = Decimal(0)
    left_out: list[LeftOut] = []
    dropped: list[int] = []
    train_seconds: float = 0.0
    sum_seconds: float = 0.0
    mask_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in the tally of other clients."""
        self.loss += other.loss
        self.left_out += other.left_out
        self.dropped += other.dropped
        self.train_seconds += other.train_seconds
        self.sum_seconds += other.sum_seconds
        self.mask_seconds += other.mask_seconds
