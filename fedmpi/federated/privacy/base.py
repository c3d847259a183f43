"""Differential privacy of the model, as the owner sees it: clients' weights, noise and epsilon.

All clients weigh the same, 1 over the number of clients that a round has on average: a fixed
number, so that a client more or less changes the sum by its own part alone. That is what a
clip bounds, and what noise hides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import UsageError
from fedmpi.federated.fixed_point import LIMIT
from fedmpi.federated.terms import Terms


class Privacy(ABC):
    """What both kinds share.

    Args:
        config: of the job.
        numel: values of the model's state.
        clients: of the job.

    Attributes:
        size: clients of a round, on average.
        weight: of every client in the sum.
        clip: of the next round.
        noise: standard deviation of the noise over the sensitivity.
        epsilon: spent so far.

    Raises:
        UsageError: the budget does not suffice for one round, or the options do not fit.
    """

    def __init__(self, config: Config, numel: int, clients: int) -> None:
        self.config = config
        self.options = config.federated.privacy
        self.numel = numel
        self.clients = clients
        federated = config.federated
        self.size: float = cohort_size(clients, federated.fraction)
        if federated.sampling == "poisson":
            self.size = federated.fraction * clients
        if self.size < 1:
            raise UsageError(
                f"privacy.kind = {self.options.kind!r}: a round has {self.size:g} clients on "
                f"average (fraction {federated.fraction:g} of {clients}): use a larger fraction"
            )
        self.probability = self.size / clients
        self.weight = 1 / self.size
        self.clip = self.options.clip
        self.epsilon = 0.0
        self.noise = self.options.noise_multiplier or self._calibrated()
        self._prepare()
        if self.exhausted():
            first = self.after_one_more()
            raise UsageError(
                f"privacy.epsilon = {self.options.epsilon:g} is not enough for one round with "
                f"privacy.noise_multiplier = {self.noise:g}, which costs {first:.3g}: use a larger "
                "epsilon or noise multiplier, or leave the noise multiplier out"
            )

    @abstractmethod
    def _calibrated(self) -> float:
        """The smallest noise multiplier for the budget and the rounds."""

    @abstractmethod
    def _prepare(self) -> None:
        """Makes ready what `after_one_more` needs; the noise is known."""

    @abstractmethod
    def after_one_more(self) -> float:
        """Epsilon after another round in which no client is lost."""

    @abstractmethod
    def finish(self, number: int, total: torch.Tensor, included: int, among: int) -> None:
        """Ends a round: noise on the sum, in place, and epsilon.

        Args:
            number: of the round.
            total: float64, the parts of the sum.
            included: clients whose updates are in it.
            among: clients of the round's cohort; 0 if nobody was asked, and the sum is zeros.
        """

    def terms(self, among: int) -> Terms:
        """What clients need to know of a round with so many of them.

        Raises:
            UsageError: the sum of so many could leave 64 bits.
        """
        if among * self.weight * self.clip >= LIMIT:
            raise UsageError(
                f"privacy.clip = {self.clip:g} with {among} clients in a round, of {self.size:g} "
                f"on average: their sum could reach {LIMIT:,.0f} and wrap: use a smaller clip"
            )
        return Terms(self.clip, self.clip * self.weight, self.noise, among)

    def parts(self) -> dict[str, int]:
        """Names and lengths of what clients send beside the update."""
        return {}

    def exhausted(self) -> str:
        """Why there can be no further round; empty if there can be one."""
        budget = self.options.epsilon
        if not budget:
            return ""
        following = self.after_one_more()
        # Calibrated noise is for all rounds to the last digit.
        if following <= budget * (1 + 1e-9):
            return ""
        return f"another round would spend epsilon {following:.4g} of {budget:g}"

    def findings(self) -> dict[str, Any]:
        """Fields of `RoundMetrics`."""
        return {"epsilon": self.epsilon}

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has been spent, and the clip where that moves, see `Remembers`."""

    @abstractmethod
    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave."""

    def remarks(self) -> list[str]:
        """Lines for a person, before the first round."""
        options, sampling = self.options, self.config.federated.sampling
        lines = [
            f"privacy: {options.kind}, noise multiplier {self.noise:.4g}, clip {options.clip:g}, "
            f"{sampling} cohorts of {self.size:g} of {self.clients} clients, delta "
            f"{options.delta:g}"
        ]
        if options.noise == "seed":
            lines.append(
                "privacy: the noise comes from the seed and protects only as long as nobody knows "
                "that; privacy.noise = 'system' takes it from the operating system"
            )
        if options.delta >= 1 / self.clients:
            lines.append(
                f"privacy: delta = {options.delta:g} with {self.clients} clients: at 1 over their "
                "number or more, giving one of them away whole would be allowed"
            )
        return lines
