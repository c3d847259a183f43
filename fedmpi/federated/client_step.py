"""The small steps that a job puts around a client's training, each of them one idea.

A client's part of a round goes: rows, training, update, sum. A step may change the rows, bend the
descent, or change the update; what it does not change stays as it is. The order is that of
`client_steps`, the same on every worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch

from fedmpi.config import Config
from fedmpi.federated.descent import Descent
from fedmpi.federated.update import Turn, Update

if TYPE_CHECKING:
    from fedmpi.federated.trainer import Trainer

TrainStep = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], None]
"""A step of local training: (x, y, total, minus the learning rate), see `TrainingStep`."""


class ClientStep:
    """A step that changes nothing; the base of those that do.

    Args:
        trainer: of the worker: its configuration, model and clients.

    Attributes:
        remembers: of the class: it keeps something of its clients from round to round, which
            dies with its worker; a job goes on without a worker only if no step does.
        drifts: of the class: it has a `drift`.

    Every random draw of a step comes from (seed, purpose, round, client), see `seeds`.

    Attributes:
        memory: what it remembers of clients from round to round, by name; see `remember`.
    """

    remembers: ClassVar[bool] = False
    drifts: ClassVar[bool] = False

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.memory: dict[str, dict[int, torch.Tensor]] = {}

    def remember(self, name: str) -> dict[int, torch.Tensor]:
        """A tensor for each client that is kept from round to round and belongs to a checkpoint.

        Args:
            name: of what is kept.

        Returns:
            By client, to be filled by the step. The tensors are on any device, of one shape and
            dtype; one that is in it is replaced and never written to.
        """
        self.memory[name] = {}
        return self.memory[name]

    def rows(
        self, turn: Turn, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows to train on; x and y are not to be written to."""
        return x, y

    @classmethod
    def decay(cls, config: Config) -> float:
        """The weight decay that comes with it: decay times w is added to every gradient."""
        return 0.0

    def drift(self, turn: Turn) -> torch.Tensor:
        """What is added to every gradient of a client's turn, float32 [trained parameters].

        Asked for before the turn begins, if the class says that it `drifts`.
        """
        raise NotImplementedError

    def finish(self, update: Update) -> None:
        """Changes a client's update before it is added up."""

    def used(self, turn: Turn) -> None:
        """The update that was finished last is in the sum: it was not left out."""


def client_steps(trainer: Trainer) -> list[ClientStep]:
    """The steps that a job's configuration asks for, in the order in which they are taken."""
    from fedmpi.federated.attack_steps import attack_steps
    from fedmpi.federated.strategies import strategy_class  # strategies bring steps: see there

    steps: list[ClientStep] = [*attack_steps(trainer)]
    local_rule = strategy_class(trainer.config.federated.strategy.kind).client_step
    if local_rule:
        steps.append(local_rule(trainer))
    if trainer.config.federated.privacy.kind in ("central", "distributed"):
        from fedmpi.federated.private_steps import AddNoise, Clip

        steps.append(Clip(trainer))
        if trainer.config.federated.privacy.kind == "distributed":
            steps.append(AddNoise(trainer))
    return steps


def descent_of(config: Config) -> Descent:
    """What the clients of a job do with a gradient."""
    from fedmpi.federated.strategies import strategy_class

    federated = config.federated
    rule = strategy_class(federated.strategy.kind).client_step
    decay = federated.weight_decay + (rule.decay(config) if rule else 0.0)
    return Descent(federated.momentum, decay, rule is not None and rule.drifts)
