"""What a prediction is made of: costs that were measured, and parts of a round that follow."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from fedmpi.config import require
from fedmpi.study.cost_model import Link, Load


@dataclass(frozen=True)
class OwnerCosts:
    """What the owner does beside sending, receiving and adding vectors, by `bench owner`.

    Attributes:
        send, gather: seconds before and after the workers' part, of a round of this job.
        messages: that it sends and receives in a round.
        open_client: seconds per client of the cohort to remove masks from a secure sum.
    """

    send: float
    gather: float
    messages: int
    open_client: float = 0.0


@dataclass(frozen=True)
class Network:
    """What messages cost.

    Attributes:
        broadcast, reduce: chunks of a broadcast, and of a sum, the addition included.
        message: seconds of a short message of plain MPI.
        source: where the figures are from, for a person.
    """

    broadcast: Link
    reduce: Link
    message: float
    source: str


@dataclass(frozen=True)
class Part:
    """One thing that a round waits for.

    Attributes:
        phase: of metrics.jsonl that it is counted in.
        name: what it is.
        seconds: per round.
        remedy: what would make it shorter.
    """

    phase: str
    name: str
    seconds: float
    remedy: str


@dataclass(frozen=True)
class Prediction:
    """A round.

    Attributes:
        parts: in the order of a round; they follow one another.
        load: how its clients fall on the workers.
        bytes_sent: by all ranks together.
    """

    parts: list[Part]
    load: Load
    bytes_sent: int

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def limit(self) -> Part:
        """The part that takes longest."""
        return max(self.parts, key=lambda part: part.seconds)

    def phases(self) -> dict[str, float]:
        """Seconds by phase of metrics.jsonl."""
        found: dict[str, float] = {}
        for part in self.parts:
            found[part.phase] = found.get(part.phase, 0.0) + part.seconds
        return found


def link_of(latency_us: float, gbit: float) -> Link:
    """A network as data sheets state it.

    Raises:
        UsageError: not numbers above 0.
    """
    require(
        isfinite(latency_us) and 0 < latency_us <= 1e6,
        "latency_us",
        latency_us,
        "above 0, at most 1e6 us",
    )
    require(isfinite(gbit) and 0 < gbit < inf, "gbit", gbit, "a number above 0, in Gbit/s")
    return Link(1e-6 * latency_us, 8e-9 / gbit)
