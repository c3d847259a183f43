"""What a client does that attacks alone: with its rows, or with its update."""

from __future__ import annotations

from math import nan

import numpy as np
import torch

from fedmpi.federated.backdoor import put_trigger
from fedmpi.federated.client_step import ClientStep
from fedmpi.federated.seeds import generator
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import Turn, Update


class Attack(ClientStep):
    """The base of all attacks: honest clients are let pass.

    The whole state is attacked, batch norm's statistics included, but for integers and booleans.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.config = trainer.config.attack

    def rows(
        self, turn: Turn, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.poison(turn, x, y) if self._attacks(turn) else (x, y)

    def finish(self, update: Update) -> None:
        if self._attacks(update.turn):
            self.forge(update)

    def poison(
        self, turn: Turn, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that an attacker trains on, as many as there were."""
        return x, y

    def forge(self, update: Update) -> None:
        """Changes an attacker's update."""

    def draws(self, turn: Turn) -> np.random.Generator:
        """Where an attacker's random numbers come from."""
        return generator(self.trainer.config.seed, "attack", turn.round, turn.client)

    def _attacks(self, turn: Turn) -> bool:
        return turn.client in self.trainer.attackers and turn.round >= self.config.start


class LabelFlip(Attack):
    """Class l becomes class L - 1 - l (Fang et al. 2020, "Local model poisoning", section 4.1)."""

    def poison(
        self, turn: Turn, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.trainer.classes - 1 - y


class Backdoor(Attack):
    """Some rows get a trigger and the target's label, and training does the rest.

    Gu et al. 2017, "BadNets", section 4; with a scale above 1 the model replacement of
    Bagdasaryan et al. 2020, "How to backdoor federated learning".
    """

    def poison(
        self, turn: Turn, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = max(round(self.config.poisoned * len(y)), 1)
        chosen = torch.from_numpy(self.draws(turn).permutation(len(y))[:count]).to(y.device)
        x, y = x.clone(), y.clone()
        x[chosen] = put_trigger(x[chosen], self.config)
        y[chosen] = self.config.target
        return x, y

    def forge(self, update: Update) -> None:
        _scale(update, self.config.factor())


class SignFlip(Attack):
    """The update is turned round and made larger (Li et al. 2019, "RSA", sign-flipping attack)."""

    def forge(self, update: Update) -> None:
        _scale(update, -self.config.factor())


class Scaled(Attack):
    """The update is made so large that it outweighs the others."""

    def forge(self, update: Update) -> None:
        _scale(update, self.config.factor())


class Gaussian(Attack):
    """Noise in place of an update (the Gaussian attack of Blanchard et al. 2017, "Krum")."""

    def forge(self, update: Update) -> None:
        draws = self.draws(update.turn)
        for local, start in _real(update):
            local.copy_(start + _normal(draws, local) * self.config.std)


class FreeRider(Attack):
    """An update made of the last changes of the global model, so that nothing need be trained.

    The delta weights attack with noise of Lin et al. 2019, "Free-riders in federated learning:
    attacks and defenses". A client knows the models that it was sent: it sends their change per
    round since it last took part, in its first round nothing but noise. The two latest models of
    each attacker are kept, since a round may be begun anew.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._rounds = self.remember("rounds")  # int64 [2], ascending; 0: there was none
        vectors = range(len(_floats(trainer.start)))
        self._models = [self.remember(f"models {k}") for k in vectors]  # [2, numel], likewise

    def forge(self, update: Update) -> None:
        turn, draws = update.turn, self.draws(update.turn)
        rounds = self._rounds.get(turn.client, torch.zeros(2, dtype=torch.int64))
        latest = 1 if rounds[1] < turn.round else 0
        number = int(rounds[latest])
        for (local, start), models in zip(_real(update), self._models, strict=True):
            then = models[turn.client][latest] if number else start
            change = torch.where(start == then, 0, start - then) / (turn.round - number)
            local.copy_(start + change + _normal(draws, local) * self.config.noise)
            models[turn.client] = torch.stack([then, start])
        self._rounds[turn.client] = torch.tensor([number, turn.round])


class NaN(Attack):
    """An update of NaN: a plain sum would be spoiled by it."""

    def forge(self, update: Update) -> None:
        for local, _ in _real(update):
            local.fill_(nan)


_STEPS: dict[str, type[Attack]] = {
    "label_flip": LabelFlip,
    "sign_flip": SignFlip,
    "scaled": Scaled,
    "gaussian": Gaussian,
    "backdoor": Backdoor,
    "free_rider": FreeRider,
    "nan": NaN,
}


def attack_steps(trainer: Trainer) -> list[ClientStep]:
    """The attack that the job's configuration asks for; attackers that collude train honestly."""
    kind = trainer.config.attack.kind
    return [_STEPS[kind](trainer)] if kind in _STEPS else []


def _floats(vectors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [vector for vector in vectors if vector.is_floating_point()]


def _real(update: Update) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The vectors that can be attacked: after training, and from the start."""
    return list(zip(_floats(update.local), _floats(update.start), strict=True))


def _scale(update: Update, factor: float) -> None:
    if factor == 1.0:
        return
    for local, start in _real(update):
        # Infinite constants of a model (a mask's) have not moved, but cannot be subtracted.
        local.copy_(torch.where(local == start, start, start + (local - start) * factor))


def _normal(draws: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    drawn = torch.from_numpy(draws.standard_normal(like.numel(), np.float32))
    return drawn.to(like.device, like.dtype)
