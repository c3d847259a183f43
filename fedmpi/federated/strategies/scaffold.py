"""SCAFFOLD: control variates correct the drift of each client."""

from __future__ import annotations

import torch

from fedmpi.config import DEFAULTS, Config
from fedmpi.federated.client_step import ClientStep
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
    drifts = True

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._variates = self.remember("variate")

    def drift(self, turn: Turn) -> torch.Tensor:
        c, mine = self._variates_of(turn)
        return c - mine

    def finish(self, update: Update) -> None:
        c, mine = self._variates_of(update.turn)
        trained_in = self.trainer.state.trained_in
        pairs = zip(trained_in(update.start), trained_in(update.local), strict=True)
        moved = [(w0 - w).float() for w0, w in pairs]
        steps = self.trainer.local_steps(update.turn.rows)
        self._new = torch.cat(moved).div_(steps * update.turn.lr).sub_(c).add_(mine)
        update.parts[CONTROL] = Part([self._new], [mine], update.weight)

    def used(self, turn: Turn) -> None:
        self._variates[turn.client] = self._new

    def _variates_of(self, turn: Turn) -> tuple[torch.Tensor, torch.Tensor]:
        """The owner's and the client's, before the turn."""
        [c] = (vector.to(self.trainer.device) for vector in self.trainer.beside)
        mine = self._variates.get(turn.client)
        return c, torch.zeros_like(c) if mine is None else mine


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
