"""Differential privacy of the model, as the owner sees it: clients' weights, noise and epsilon.

All clients weigh the same, 1 over the number of clients that a round has on average: a fixed
number, so that a client more or less changes the sum by its own part alone. That is what a
clip bounds, and what noise hides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import exp, floor, log2, sqrt
from typing import Any

import numpy as np
import torch

from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import UsageError
from fedmpi.federated.accounting import Accountant, RenyiCurve, calibrate, smallest_noise
from fedmpi.federated.amplification import amplified
from fedmpi.federated.exact_noise import Sampler
from fedmpi.federated.fixed_point import LIMIT, RESOLUTION
from fedmpi.federated.laws import RoundedGaussian
from fedmpi.federated.noise_grid import NoiseGrid
from fedmpi.federated.private_steps import UNCLIPPED, noise_key
from fedmpi.federated.remembered import number
from fedmpi.federated.terms import Terms

CLIP_RATE = 0.2
"""How fast an adaptive clip moves (Andrew et al. 2021, section 3.1)."""


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


class Central(Privacy):
    """The owner adds Gaussian noise to the sum (McMahan et al. 2018, DP-FedAvg, fixed denominator).

    The noise is a Gaussian variate rounded to a grid on which the sum has been rounded before: see
    `RoundedGaussian` for what that means. With `adaptive` the clip follows a quantile of
    the norms (Andrew et al. 2021, "Differentially private learning with adaptive clipping").
    """

    STEPS = 24
    """log2 of the steps of the grid to a standard deviation."""

    def _calibrated(self) -> float:
        federated, options = self.config.federated, self.options
        return calibrate(
            options.epsilon,
            options.delta,
            federated.rounds,
            self.probability,
            kind=options.accountant,
            sampling=federated.sampling,
        )

    def _prepare(self) -> None:
        self._rounds = 0
        self._accountant = Accountant(
            self.noise,
            self.options.delta,
            self.probability,
            kind=self.options.accountant,
            sampling=self.config.federated.sampling,
        )
        self._update_noise = self.noise
        if self.options.adaptive:
            # Theorem 1: both parts together are as private as one with the noise multiplier. The
            # paper's noise for the bits of m clients is m / 20, here at least so much that the
            # update's grows by a sixth at most.
            self._bit_noise = 2 * max(self.size / 20, self.noise)
            self._update_noise = (self.noise**-2 - self._bit_noise**-2) ** -0.5

    def after_one_more(self) -> float:
        return self._accountant.epsilon(self._rounds + 1)

    def parts(self) -> dict[str, int]:
        return {UNCLIPPED: 1} if self.options.adaptive else {}

    def finish(self, number: int, total: torch.Tensor, included: int, among: int) -> None:
        sampler = Sampler(noise_key(self.config, number, "owner"))
        update, bits = total[: self.numel], total[self.numel :]
        self._used = self.clip
        self._add(update, sampler, self._update_noise, self.clip * self.weight)
        if self.options.adaptive:
            self._add(bits, sampler, self._bit_noise, self.weight / 2)
            share = float(bits[0]) + 0.5
            moved = self.clip * exp(-CLIP_RATE * (share - self.options.adaptive))
            self.clip = min(max(moved, 1e-6), 1e6)
        self._rounds += 1
        self.epsilon = self._accountant.epsilon(self._rounds)

    def findings(self) -> dict[str, Any]:
        return super().findings() | ({"clip": self._used} if self.options.adaptive else {})

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"rounds": number(self._rounds), "clip": number(float(self.clip))}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        self._rounds, self.clip = int(saved["rounds"]), float(saved["clip"])
        self.epsilon = self._accountant.epsilon(self._rounds) if self._rounds else 0.0

    def _add(self, part: torch.Tensor, sampler: Sampler, noise: float, norm: float) -> None:
        """Noise on a part of the sum, of which clients have this norm at most."""
        n = part.numel()
        bits = floor(self.STEPS - log2(noise * norm))
        # A client rounds every value to 2^-RESOLUTION, and the owner the sum to the grid.
        sensitivity = norm + sqrt(n) * (2.0 ** -(RESOLUTION + 1) + 2.0**-bits)
        drawn = sampler.draw(RoundedGaussian(noise * sensitivity * 2.0**bits), n)
        part.mul_(2.0**bits).round_().add_(torch.from_numpy(drawn).to(part)).mul_(2.0**-bits)


class Distributed(Privacy):
    """Every client adds its part of discrete noise, which holds under secure aggregation.

    A round that lost clients has less noise: it counts for more. Where nobody is asked,
    the owner adds the noise of all, so that the model does not tell that a round was empty.
    """

    def _calibrated(self) -> float:
        federated, options = self.config.federated, self.options

        def spent(noise: float) -> float:
            return RenyiCurve(self._curve(noise, 1, 1), options.delta).epsilon(federated.rounds)

        return smallest_noise(spent, options.epsilon, options.delta, federated.rounds)

    def _prepare(self) -> None:
        self._curves: dict[tuple[int, int], np.ndarray] = {}
        self._spent = np.zeros_like(self._known(1, 1))
        self._among = max(round(self.size), 1)

    def after_one_more(self) -> float:
        rdp = self._spent + self._known(self._among, self._among)
        return RenyiCurve(rdp, self.options.delta).epsilon()

    def terms(self, among: int) -> Terms:
        terms = super().terms(among)
        step = 2.0 ** -self._grid(self.noise, among).bits
        if among * step >= 2:
            raise UsageError(
                f"privacy.noise_multiplier = {self.noise:g} with privacy.clip = {self.clip:g} and "
                f"{among} clients in a round: their noise could wrap in 64 bits: use less noise"
            )
        return terms

    def finish(self, number: int, total: torch.Tensor, included: int, among: int) -> None:
        if not among:
            grid = self._grid(self.noise, 1)
            drawn = torch.from_numpy(grid.draw(noise_key(self.config, number, "owner")))
            total.add_(drawn.to(total).mul_(2.0**-grid.bits))
        self._spent = self._spent + self._known(max(included, 1), max(among, 1))
        self.epsilon = RenyiCurve(self._spent, self.options.delta).epsilon()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"spent": torch.from_numpy(self._spent)}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        self._spent = saved["spent"].numpy().copy()
        self.epsilon = RenyiCurve(self._spent, self.options.delta).epsilon()

    def _grid(self, noise: float, among: int) -> NoiseGrid:
        norm = self.clip * self.weight
        return NoiseGrid.of(self.options.mechanism, norm, noise, self.numel, among)

    def _known(self, included: int, among: int) -> np.ndarray:
        """Renyi divergences of a round in which so many of the cohort's clients added noise."""
        if (included, among) not in self._curves:
            self._curves[included, among] = self._curve(self.noise, included, among)
        return self._curves[included, among]

    def _curve(self, noise: float, included: int, among: int) -> np.ndarray:
        grid, sampling = self._grid(noise, among), self.config.federated.sampling
        return amplified(
            lambda orders: grid.divergence(orders, included, replaced=sampling == "fixed"),
            self.probability,
            sampling,
        )


def privacy_of(config: Config, vectors: Sequence[torch.Tensor], clients: int) -> Privacy | None:
    """The privacy of the model that a configuration asks for, if any.

    Args:
        config: of the job.
        vectors: of the model's state.
        clients: of the job.

    Raises:
        UsageError: it cannot be had for this model, or within this budget.
    """
    kind = config.federated.privacy.kind
    if kind not in ("central", "distributed"):
        return None
    for vector in vectors:
        if not vector.is_floating_point():
            raise UsageError(
                f"privacy.kind = {kind!r} with model {config.model}, whose state has "
                f"{str(vector.dtype).removeprefix('torch.')} values (batch norm counts its steps), "
                "to which no noise can be added: use a model with group norm, as resnet18-gn"
            )
    numel = sum(vector.numel() for vector in vectors)
    return (Central if kind == "central" else Distributed)(config, numel, clients)
