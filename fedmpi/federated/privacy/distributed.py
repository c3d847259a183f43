"""Distributed differential privacy: every client adds a part of the noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedmpi.errors import UsageError
from fedmpi.federated.accounting import RenyiCurve, smallest_noise
from fedmpi.federated.amplification import amplified
from fedmpi.federated.noise_grid import NoiseGrid
from fedmpi.federated.privacy.base import Privacy
from fedmpi.federated.private_steps import noise_key
from fedmpi.federated.terms import Terms


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
