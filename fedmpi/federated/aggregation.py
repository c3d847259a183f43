"""How the sum of a round's updates reaches the owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedmpi.comm.collective import reduce_sum
from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import UsageError
from fedmpi.federated.commands import SUM, Reported
from fedmpi.federated.fixed_point import real
from fedmpi.workers.crew import Crew
from fedmpi.workers.vectors import ReduceSum, Route


@dataclass(frozen=True)
class Asked:
    """A round whose sum is on its way.

    Attributes:
        number: of the round.
        cohort: its clients, ascending.
        rank: of the worker that holds each client.
        ranks: of the workers that take part, ascending.
        route: how the sum travels.
        length: values in it.
    """

    number: int
    cohort: list[int]
    rank: dict[int, int]
    ranks: list[int]
    route: Route
    length: int


class Aggregation:
    """In the clear: every worker sends its sum, added up on the way.

    Args:
        config: of the job.
        crew: the workers.

    Attributes:
        findings: what the sum of the latest round has to say: fields of `RoundMetrics`.
        traffic: bytes and messages that ranks have sent up to after their reports, if they did.
    """

    def __init__(self, config: Config, crew: Crew) -> None:
        self.config = config
        self.crew = crew
        self.findings: dict[str, Any] = {}
        self.traffic: dict[int, tuple[int, int]] = {}

    def prepare(self, asked: Asked) -> None:
        """Sends the commands that go before a worker's `Train`; sends nothing else, waits not."""

    def ask(self, asked: Asked) -> None:
        """Sends the commands that follow a worker's `Train`; sends nothing else and waits not."""
        self.asked = asked
        ask_sum(self.crew, asked.route, asked.length)

    def receive(self, memory: torch.Tensor, expected: float) -> None:
        """Waits for what the workers send.

        Args:
            memory: whose kind of memory (CPU, or GPU that MPI can read) the sum shall have.
            expected: seconds that it will probably take.
        """
        self._total = receive_sum(self.crew, self.asked.route, self.asked.length, memory, expected)

    def total(self, reports: Sequence[Reported], included: Sequence[int]) -> torch.Tensor:
        """The sum over the clients that are included, float64 [length].

        Args:
            reports: of the ranks asked, in their order; all have been heard.
            included: clients whose updates are to be in it, ascending.
        """
        return real(self._total)


def ask_sum(crew: Crew, route: Route, length: int) -> None:
    """Asks the workers of a route for the sum of what they hold as `SUM`."""
    crew.tell_all(route.group[1:], ReduceSum(SUM, route, length))


def receive_sum(
    crew: Crew, route: Route, length: int, memory: torch.Tensor, expected: float = 0.0
) -> torch.Tensor:
    """Waits for the sum that was asked for: int64 [length]; see `Aggregation.receive`."""
    total = memory.new_zeros(length, dtype=torch.int64)
    transport = crew.endpoint.transport
    reduce_sum(transport, route.group, total, route.topology, route.chunk_bytes, expected)
    return total


def aggregation_of(config: Config, crew: Crew, clients: int) -> Aggregation:
    """The way of the sum that a configuration asks for, in a job of so many clients.

    Raises:
        UsageError: secure aggregation over cohorts of one client.
    """
    federated = config.federated
    if federated.secure.kind != "none" and cohort_size(clients, federated.fraction) < 2:
        raise UsageError(
            f"secure.kind = {federated.secure.kind!r} with a cohort of one client (fraction = "
            f"{federated.fraction:g} of {clients} clients): the sum would be that client's update: "
            "raise fraction, or use more clients"
        )
    if federated.secure.kind == "shares":
        from fedmpi.federated.masked import Masked

        return Masked(config, crew)
    if federated.secure.kind == "ckks":
        from fedmpi.federated.homomorphic import Homomorphic

        return Homomorphic(config, crew)
    return Aggregation(config, crew)
