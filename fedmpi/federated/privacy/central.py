"""Central differential privacy: the owner adds the noise."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, floor, log2, sqrt
from typing import Any

import torch

from fedmpi.federated.accounting import Accountant, calibrate
from fedmpi.federated.exact_noise import Sampler
from fedmpi.federated.fixed_point import RESOLUTION
from fedmpi.federated.laws import RoundedGaussian
from fedmpi.federated.privacy.base import Privacy
from fedmpi.federated.private_steps import UNCLIPPED, noise_key
from fedmpi.federated.remembered import number

CLIP_RATE = 0.2
"""How fast an adaptive clip moves (Andrew et al. 2021, section 3.1)."""


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
