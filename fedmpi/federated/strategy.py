"""A federated algorithm as the owner sees it: how clients weigh, and what it does with the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from fedmpi.config import Config
from fedmpi.errors import DataError
from fedmpi.federated.fixed_point import apply_mean
from fedmpi.federated.flat_state import FlatState

if TYPE_CHECKING:
    from fedmpi.federated.client_step import ClientStep


@dataclass(frozen=True)
class Cohort:
    """The clients of a round, ascending, with their rows and local steps.

    Attributes:
        clients: ids.
        rows: of each.
        steps: local steps of SGD that each takes, as far as they reach: with momentum they are as
            many steps without it (`Descent.reach`).
        of: number of all clients of the job.
    """

    clients: list[int]
    rows: list[int]
    steps: list[float]
    of: int


@dataclass
class Mean:
    """The weighted mean of a round's updates.

    Attributes:
        update: float64 [numel], over all vectors of the state, one after another.
        parts: the further parts of the sum that the strategy asked for, float64.
        cohort: the clients that are in it.
    """

    update: torch.Tensor
    cohort: Cohort
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


class Strategy:
    """FedAvg (McMahan et al. 2017, Algorithm 1), and the base of all other strategies.

    Args:
        config: of the job.
        state: the owner's model; `apply` changes its vectors in place.

    Attributes:
        defaults: of the class: its options in [federated.strategy], and what they are if left open.
        client_step: of the class: what it puts around a client's training, if anything. Workers
            import it with the class, so that it has to stand in a module, not in a script.
        options: the configuration's, with the defaults filled in.
        memory: what it remembers from round to round, by name; see `remember`.
    """

    defaults: ClassVar[Mapping[str, float]] = {}
    client_step: ClassVar[type[ClientStep] | None] = None

    def __init__(self, config: Config, state: FlatState) -> None:
        self.config = config
        self.state = state
        self.options = config.federated.strategy.filled(self.defaults)
        self.memory: dict[str, torch.Tensor] = {}

    def remember(self, name: str, value: float = 0.0, length: int | None = None) -> torch.Tensor:
        """A vector that is kept from round to round and belongs to a checkpoint.

        Args:
            name: of the vector.
            value: that all of it has at first.
            length: as many as there are in an update, if not given.

        Returns:
            float64 [length] on the model's device, to be changed in place.
        """
        device = self.state.vectors[0].device
        size = self.state.numel if length is None else length
        self.memory[name] = torch.full((size,), value, dtype=torch.float64, device=device)
        return self.memory[name]

    def weights(self, cohort: Cohort) -> list[float]:
        """The weight of each client, adding up to 1."""
        rows = sum(cohort.rows)
        return [n / rows for n in cohort.rows]

    def parts(self) -> dict[str, int]:
        """Names and lengths of what clients send beside the update of the state."""
        return {}

    def sends(self) -> list[torch.Tensor]:
        """Vectors that go out beside the model, on its device; the same number every round."""
        return []

    def apply(self, mean: Mean) -> None:
        """The server's step: changes the model by the mean of the updates."""
        apply_mean(self.state.vectors, mean.update)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What it remembers, for a checkpoint."""
        return dict(self.memory)

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            DataError: it is of another strategy or another model.
        """
        for name in self.memory.keys() | saved.keys():
            mine, other = (_layout(of.get(name)) for of in (self.memory, saved))
            if mine != other:
                raise DataError(
                    f"{name} of the strategy's memory: found {other}, but "
                    f"{type(self).__name__} of this model has {mine}"
                )
        for name, tensor in self.memory.items():
            tensor.copy_(saved[name])


def _layout(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
