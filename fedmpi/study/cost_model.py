"""What a round costs: latency (alpha), bandwidth (1 / beta) and computation (gamma).

The cost of a message of n bytes is alpha + beta n (Hockney 1994, "The communication challenge for
MPP", Parallel Computing 20); that of a broadcast or a reduction follows from its tree, as in
Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in
MPICH", section 4. As in LogP (Culler et al. 1993) what a rank spends on each message is its own:
the owner's part grows with the number of workers however fast the network is.

A vector of n bytes travels in K chunks. In the binomial tree of p ranks the root has d =
ceil(log2 p) children and sends each chunk to all of them; other ranks have fewer. So the root is
what all wait for, and the levels below it overlap with it: the last rank has the last chunk after
d (K alpha + n beta). In a star it is p - 1 in place of d.

Ranks that share cores cannot all work at once. By Brent 1974 ("The parallel evaluation of general
arithmetic expressions") the time is at least the longest chain of work, and at least all work of a
node divided by its cores; the larger of both is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binom, hypergeom

from fedmpi.config.federated import Sampling


@dataclass(frozen=True)
class Link:
    """What a chunk costs on its way from rank to rank.

    Attributes:
        alpha: seconds of a message, whatever its length.
        beta: seconds per byte.
    """

    alpha: float
    beta: float


@dataclass(frozen=True)
class Machine:
    """Where ranks run.

    Attributes:
        ranks: all of them, the owner included.
        nodes: over which they are spread evenly, neighbours together.
        cores: of a node.
    """

    ranks: int
    nodes: int
    cores: int

    @property
    def ranks_per_node(self) -> int:
        return -(-self.ranks // self.nodes)

    @property
    def workers_per_node(self) -> int:
        """On the fullest node; the owner's has one fewer if all are as full."""
        return -(-(self.ranks - 1) // self.nodes)


def depth(ranks: int) -> int:
    """Levels of the binomial tree, and children of its root: ceil(log2 ranks)."""
    return (ranks - 1).bit_length()


def turns(topology: Literal["tree", "star"], machine: Machine) -> float:
    """How often a whole vector passes, one time after another, until it is everywhere, or summed.

    The root's children or, where ranks share cores, the transfers of a node over its cores.
    """
    chain = depth(machine.ranks) if topology == "tree" else machine.ranks - 1
    shared = machine.ranks_per_node > machine.cores
    crowd = min(machine.ranks_per_node, machine.ranks - 1) / machine.cores if shared else 0.0
    return max(chain, crowd)


def collective(
    nbytes: int, chunk_bytes: int, topology: Literal["tree", "star"], machine: Machine, link: Link
) -> float:
    """Seconds of a broadcast or a reduction of a vector."""
    messages, length = terms(nbytes, chunk_bytes, topology, machine)
    return messages * link.alpha + length * link.beta


def terms(
    nbytes: int, chunk_bytes: int, topology: Literal["tree", "star"], machine: Machine
) -> tuple[float, float]:
    """Messages and bytes that follow one another in a collective: factors of alpha and of beta."""
    times = turns(topology, machine)
    return times * max(1, -(-nbytes // chunk_bytes)), times * nbytes


@dataclass(frozen=True)
class Load:
    """How the clients of a round fall on the workers.

    Attributes:
        cohort: clients in all.
        mean: clients of a worker, on average over the workers that have any.
        largest: expected number of the worker that has most.
        busy: workers that have any, expected.
    """

    cohort: int
    mean: float
    largest: float
    busy: float


def even(cohort: int, workers: int) -> Load:
    """The load of a cohort that is given evenly to workers, see `placement.spread`."""
    busy = min(cohort, workers)
    return Load(cohort, cohort / busy, -(-cohort // workers), busy)


def load(clients: int, cohort: int, workers: int, sampling: Sampling) -> Load:
    """The expected load of a random cohort over workers that hold equally many clients each.

    The number that falls on one worker is hypergeometric (fixed) or binomial (poisson); the
    maximum over the workers follows as if they were independent: E max = sum over x >= 0 of
    1 - F(x)^W. Of a fixed cohort they are not quite, and the true maximum is a little larger: by
    6 % of 7 clients on 7 workers, less of more.

    Args:
        clients: of all workers.
        cohort: clients that are drawn, on average.
        workers: that hold them.
        sampling: as `FederatedConfig.sampling`.
    """
    fewer, more = clients // workers, -(-clients // workers)
    of_more = clients - fewer * workers  # workers with one client more than the others
    counts = {fewer: workers - of_more, more: of_more} if of_more else {fewer: workers}
    x = np.arange(min(more, cohort if sampling == "fixed" else more) + 1)
    log_all = np.zeros(len(x))
    busy = 0.0
    for held, count in counts.items():
        if sampling == "fixed":
            below = hypergeom(clients, held, cohort).cdf(x)
        else:
            below = binom(held, cohort / clients).cdf(x)
        with np.errstate(divide="ignore"):
            log_all += count * np.log(np.clip(below, 0.0, 1.0))
        busy += count * (1 - below[0])
    largest = float(np.sum(1 - np.exp(log_all)))
    return Load(cohort, cohort / max(busy, 1e-12), max(largest, cohort / workers), busy)
