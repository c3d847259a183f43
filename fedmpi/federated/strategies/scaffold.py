"""SCAFFOLD: control variates correct the drift of each client."""

from __future__ import annotations

import torch

from fedmpi.config import DEFAULTS, Config
from fedmpi.federated.client_step import ClientStep, TrainStep
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.strategy import Cohort, Mean, Strategy
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import Part, Turn, Update

CONTROL = "control"
"""Name of the part of the sum, float32 [trained parameters]: how the clients' variates moved."""


class Controlled(ClientStep):
    """w = w - lr (gradient - c_k + c), and then c_k = c_k - c + (w0 - w) / (steps lr), option II.

    A worker keeps the variate of every client that it has trained, float32 [trained parameters].
    It changes only if the client's update is in the sum, as that of c does.
    """

    remembers = True

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._trained = trainer.state.trained_in(trainer.state.vectors)
        self._lengths = [t.numel() for t in self._trained]
        self._variates = self.remember("variate")

    def training(self, turn: Turn, step: TrainStep) -> TrainStep:
        [c] = (vector.to(self.trainer.device) for vector in self.trainer.beside)
        mine = self._variates.get(turn.client)
        self._c, self._mine = c, torch.zeros_like(c) if mine is None else mine
        self._steps = 0
        corrections = (self._c - self._mine).split(self._lengths)

        def corrected(
            x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, step_size: float
        ) -> None:
            step(x, y, total, step_size)
            for trained, correction in zip(self._trained, corrections, strict=True):
                trained.add_(correction, alpha=step_size)
            self._steps += 1

        return corrected

    def finish(self, update: Update) -> None:
        trained_in = self.trainer.state.trained_in
        pairs = zip(trained_in(update.start), trained_in(update.local), strict=True)
        moved = [(w0 - w).float() for w0, w in pairs]
        gradient = torch.cat(moved).div_(self._steps * update.turn.lr)
        self._new = gradient.sub_(self._c).add_(self._mine)
        update.parts[CONTROL] = Part([self._new], [self._mine], update.weight)

    def used(self, turn: Turn) -> None:
        self._variates[turn.client] = self._new


class Scaffold(Strategy):
    """w = w + server_lr mean(delta_k), c = c + |S| / N mean(change of c_k), all clients alike.

    Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    Algorithm 1. c is the mean of all c_k, those of clients that have not trained yet being 0. It
    is kept in float64 and goes out as float32.
    """

    defaults = DEFAULTS["scaffold"]
    client_step = Controlled

    def __init__(self, config: Config, state: FlatState) -> None:
        super().__init__(config, state)
        self._lr = self.options.number("server_lr")
        trained = sum(t.numel() for t in state.trained_in(state.vectors))
        self._c = self.remember(CONTROL, length=trained)

    def weights(self, cohort: Cohort) -> list[float]:
        """All alike, as in the paper."""
        return [1 / len(cohort.clients)] * len(cohort.clients)

    def parts(self) -> dict[str, int]:
        return {CONTROL: self._c.numel()}

    def sends(self) -> list[torch.Tensor]:
        return [self._c.float()]

    def apply(self, mean: Mean) -> None:
        share = len(mean.cohort.clients) / mean.cohort.of
        self._c.add_(mean.parts[CONTROL], alpha=share)
        for place in self.state.trained:
            mean.update[place].mul_(self._lr)
        super().apply(mean)
