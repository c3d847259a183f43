"""Local training with DP-SGD (Abadi et al. 2016, "Deep learning with differential privacy")."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import torch

from fedmpi.federated.clipped_gradients import clipped_gradients
from fedmpi.federated.gaussian import gaussian, uniform
from fedmpi.federated.seeds import derive
from fedmpi.federated.update import Turn
from fedmpi.spdz.stream import KEY_BYTES, Stream, new_key

if TYPE_CHECKING:
    from fedmpi.federated.trainer import Trainer


def sampling_probability(rows: int, batch_size: int | Literal["full"]) -> float:
    """The chance q = B / n of a row to be in a batch, of which a client with n rows draws many."""
    return 1.0 if batch_size == "full" else min(1.0, batch_size / rows)


class DpSgd:
    """Trains the clients of a worker, as `local_sgd` does without privacy.

    Args:
        trainer: of the worker: its configuration, model and clients.

    Attributes:
        noise_multiplier: by client, standard deviation of the noise over the clip.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.noise_multiplier: dict[int, float] = {}
        step, privacy = trainer.step, trainer.config.federated.privacy
        self.gradients = clipped_gradients(step.model, step.loss_of, privacy.clip)
        seed = derive(trainer.config.seed, "dp-sgd").to_bytes(KEY_BYTES)
        self._secret = seed if privacy.noise == "seed" else new_key()

    def turn(self, turn: Turn) -> PrivateTurn:
        """A client's turn. Asked for again, it is the same to the bit: that tells nothing new."""
        place = f"{turn.round}:{turn.client}".encode()
        key = hashlib.blake2b(place, key=self._secret, digest_size=KEY_BYTES).digest()
        return PrivateTurn(self, turn, key)


class PrivateTurn:
    """The steps of one client in one round (Abadi et al. 2016, Algorithm 1).

    Batches and noise come from AES under a key of the client: whoever could tell the batches
    would not be kept from knowing who was in them.

    Args:
        of: the client's worker.
        turn: whose it is.
        key: 16 bytes, from which all draws come.
    """

    def __init__(self, of: DpSgd, turn: Turn, key: bytes) -> None:
        federated = of.trainer.config.federated
        self._gradients = of.gradients
        self._descent = of.trainer.step.descent
        self._beside = of.trainer.step.beside
        self._probability = sampling_probability(turn.rows, federated.batch_size)
        self._expected = self._probability * turn.rows
        self._steps = of.trainer.local_steps(turn.rows)
        self._std = of.noise_multiplier[turn.client] * federated.privacy.clip
        self._lr = turn.lr
        self._key = key
        self._place = 0

    @torch.no_grad()
    def train(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """As many steps as `local_sgd` takes, each with a Poisson sample of the rows.

        Args:
            x: float32 [n, ...].
            y: int64 or float32 [n].
        """
        for _ in range(self._steps):
            rows = self.sample(len(x)).to(x.device)
            self.step(x.index_select(0, rows), y.index_select(0, rows), -self._lr)

    def step(self, x: torch.Tensor, y: torch.Tensor, step_size: float) -> None:
        """A descent along (sum of clipped gradients + noise) / expected rows of a batch.

        A batch without rows is noise alone. There is no loss: that of the rows has no noise, and
        nobody is to know it.
        """
        sums = self._gradients(x, y)
        lengths = [t.numel() for t in sums]
        noise = gaussian(self._key, self._next_place(), sum(lengths), self._std)
        pieces = noise.to(x.device).split(lengths)
        numbers = self._descent.numbers(step_size)
        for k, (clipped, piece) in enumerate(zip(sums, pieces, strict=True)):
            noisy = clipped.add_(piece.view_as(clipped)).div_(self._expected)
            own = [kind[k] for kind in self._beside]
            self._descent.take(self._gradients.parameters[k], noisy, own, numbers)

    def sample(self, rows: int) -> torch.Tensor:
        """A batch: places of rows, int64 [b], each with the same chance, independently."""
        words = Stream(self._key).uniform(self._next_place(), rows)
        return (uniform(words) < self._probability).nonzero().flatten()

    def _next_place(self) -> int:
        self._place += 1
        return self._place
