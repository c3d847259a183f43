"""Local differential privacy: how much noise each client adds, and what that has cost it.

Every client protects its own rows with `DpSgd` and chooses its noise by itself. The owner, who is
not trusted, keeps the account: what it needs is public (who takes part, and how many rows).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

import torch

from fedmpi.config import Config
from fedmpi.errors import UsageError
from fedmpi.federated.accounting import Accountant, calibrate
from fedmpi.federated.cohort import cohort_of_round
from fedmpi.federated.commands import TRAINER
from fedmpi.federated.dp_sgd import sampling_probability
from fedmpi.federated.rounds import Home
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker

# A tenth of a second for an account, and some for a calibration: many clients have the same rows.
_accountant = lru_cache(maxsize=4096)(Accountant)
_calibrate = lru_cache(maxsize=4096)(calibrate)


class ChooseNoise(Command, frozen=True):
    """Choose the noise of each client, which will take part in no more rounds than this."""

    rounds: int


class NoiseChosen(Reply, frozen=True):
    """The noise multipliers of a worker's clients, in the order of its shard."""

    noise_multipliers: list[float]


@handles(ChooseNoise, replies=True)
def choose_noise(worker: Worker, command: ChooseNoise, tensors: list[torch.Tensor]) -> NoiseChosen:
    """What the configuration says, or as much as the budget asks for."""
    trainer = worker.object(TRAINER, Trainer)
    federated, privacy = trainer.config.federated, trainer.config.federated.privacy

    def chosen(rows: int) -> float:
        if privacy.noise_multiplier:
            return privacy.noise_multiplier
        probability = sampling_probability(rows, federated.batch_size)
        steps = trainer.local_steps(rows)
        return _calibrate(
            privacy.epsilon, privacy.delta, command.rounds, probability, steps, privacy.accountant
        )

    noise = {client: chosen(trainer.clients.rows(client)) for client in trainer.clients.ids}
    assert trainer.dp_sgd is not None
    trainer.dp_sgd.noise_multiplier = noise
    return NoiseChosen(list(noise.values()))


class LocalPrivacy:
    """The owner's account of what rounds have cost the clients.

    Who takes part in which round depends on the seed alone, so that the account of all rounds is
    known before the first: nobody exceeds the budget, and the last round is known to be the last.

    Args:
        config: of the job.
        crew: the workers, set up; they choose the noise now.
        home: where the clients live.

    Attributes:
        rounds: how many the budget allows, at most as many as are asked for.

    Raises:
        UsageError: the budget does not allow one round, or dp-accounting is not installed.
    """

    def __init__(self, config: Config, crew: Crew, home: Home) -> None:
        self.config = config
        federated, privacy = config.federated, config.federated.privacy
        clients = sorted(home.rows)
        cohorts = [
            cohort_of_round(config.seed, number, clients, federated.fraction, federated.sampling)
            for number in range(1, federated.rounds + 1)
        ]
        most = max(_counted(cohorts).values(), default=1)
        noise = _choose_noise(crew, home, most)

        def account(client: int) -> Accountant:
            probability = sampling_probability(home.rows[client], federated.batch_size)
            steps = home.steps[client]
            return _accountant(noise[client], privacy.delta, probability, steps, privacy.accountant)

        self._account = {client: account(client) for client in clients}
        self._epsilon = cache(Accountant.epsilon)
        self._taken: Counter[int] = Counter()
        self.rounds = federated.rounds
        if privacy.epsilon:
            every = range(1, federated.rounds + 1)
            self.rounds = bisect_right(
                every, privacy.epsilon, key=lambda k: self._largest(_counted(cohorts[:k]))
            )
        if not self.rounds:
            raise UsageError(
                f"privacy.noise_multiplier = {privacy.noise_multiplier:g} costs epsilon = "
                f"{self._largest(_counted(cohorts[:1])):.3g} in the first round, but the budget is "
                f"privacy.epsilon = {privacy.epsilon:g}: leave noise_multiplier out to have it "
                "chosen, or allow more"
            )

    def after_round(self, cohort: Sequence[int]) -> float:
        """The largest epsilon over the clients, after a round with this cohort.

        It does not matter whether an update was used: it has been sent.
        """
        self._taken.update(cohort)
        return self._largest(self._taken)

    def exhausted(self, number: int) -> str:
        """Why there can be no round after this one; empty if there can be one."""
        if number < self.rounds:
            return ""
        return (
            f"another round would spend more than epsilon {self.config.federated.privacy.epsilon:g}"
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """In how many rounds each client has taken part, see `Remembers`."""
        clients = sorted(self._account)
        return {
            "clients": torch.tensor(clients),
            "taken": torch.tensor([self._taken[client] for client in clients]),
        }

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        pairs = zip(saved["clients"].tolist(), saved["taken"].tolist(), strict=True)
        self._taken = Counter({client: rounds for client, rounds in pairs if rounds})

    def _largest(self, taken: Mapping[int, int]) -> float:
        spent = (self._epsilon(self._account[c], rounds) for c, rounds in taken.items())
        return max(spent, default=0.0)


def _choose_noise(crew: Crew, home: Home, rounds: int) -> dict[int, float]:
    """Has every client choose its noise for so many rounds."""
    for rank in crew.ranks:
        crew.tell(rank, ChooseNoise(rounds))
    chosen: dict[int, float] = {}
    for rank, reply in zip(crew.ranks, crew.hear(crew.ranks, NoiseChosen), strict=True):
        here = [client for client in home.rank if home.rank[client] == rank]
        chosen.update(zip(here, reply.noise_multipliers, strict=True))
    return chosen


def _counted(cohorts: Sequence[Sequence[int]]) -> Counter[int]:
    """In how many rounds each client takes part."""
    return Counter(client for cohort in cohorts for client in cohort)
