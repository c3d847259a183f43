"""What a round of a job will take on a machine, part by part, before there is such a machine.

Parts are named by what limits them; each belongs to a phase of metrics.jsonl, so that a prediction
can be held against a run. The costs of messages, of a client's training and of the owner are
measured, the rest is `cost_model`. Clients count as equally long, and spread evenly over workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedmpi.comm.waiting import LONGEST_PAUSE, SHARE
from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.federated.neighbours import degree
from fedmpi.federated.placement import may_lend
from fedmpi.study.bench_clients import Costs
from fedmpi.study.cost_model import Load, Machine, collective, even, load
from fedmpi.study.predictable import refuse
from fedmpi.study.prediction import Network, OwnerCosts, Part, Prediction

WORD = 8
"""Bytes of a value in a sum."""
AGREED_BYTES = 8
"""Of a client in `Agree`: its id and its rank, of up to 5 bytes each."""


def predict(
    config: Config,
    machine: Machine,
    rows: int,
    test_rows: int,
    costs: Costs,
    network: Network,
    owner: OwnerCosts,
) -> Prediction:
    """Predicts a round.

    Args:
        config: of the job.
        machine: where it runs.
        rows: of a client.
        test_rows: that the owner evaluates.
        costs: of a client's training and of the evaluation.
        network: costs of messages.
        owner: costs of the owner.

    Raises:
        UsageError: see `refuse`.
    """
    refuse(config, machine)
    federated, workers = config.federated, machine.ranks - 1
    cohort = cohort_size(config.data.clients, federated.fraction)

    def spread_over(parts: int) -> Load:
        if may_lend(config):
            return even(cohort, parts)
        return load(config.data.clients, cohort, parts, federated.sampling)

    spread = spread_over(workers)
    busy = replace(machine, ranks=max(2, round(spread.busy) + 1))
    chunk, topology = config.comm.chunk_kib * 1024, config.comm.topology
    sum_bytes = WORD * costs.numel

    def shared(per_client: float) -> tuple[float, float]:
        """Mean and longest seconds of workers whose clients take so long, cores shared."""
        crowd = min(machine.workers_per_node, busy.ranks - 1) * config.compute.threads
        stretch = max(1.0, crowd / machine.cores)
        of_node = spread_over(machine.nodes).largest
        together = of_node * config.compute.threads / machine.cores
        longest = max(spread.largest, together if stretch > 1 else 0.0) * per_client
        return min(spread.mean * stretch * per_client, longest), longest

    client = rows * federated.epochs * costs.row + costs.client
    train, slowest = shared(client)
    add, slowest_add = shared(costs.add)
    more_ranks = "more ranks, fewer local epochs, or a smaller fraction of the clients"
    tree = "a tree in place of the star" if topology == "star" else "a faster network"
    evaluation = test_rows * costs.evaluate_row / federated.eval_every
    parts = [
        Part(
            "broadcast",
            "workers wake up",
            _pause(evaluation + owner.gather + slowest - train) * (1 - 1 / busy.ranks),
            "nothing: who waits without burning a core looks only now and then",
        ),
        Part(
            "broadcast",
            "owner: cohort, commands",
            owner.send + owner.messages * network.message,
            "fewer workers with more clients each: the owner speaks to every worker",
        ),
        Part(
            "broadcast",
            f"model to the workers, {topology}",
            collective(costs.vector_bytes, chunk, topology, busy, network.broadcast),
            f"{tree}, or a smaller model",
        ),
        Part("train", "training, average worker", train, more_ranks),
        Part(
            "wait",
            "training, slowest worker beyond that",
            slowest - train + slowest_add - add,
            "more clients per worker in a round: the maximum comes closer to the mean",
        ),
        Part("aggregate", "adding up updates", add, more_ranks),
        Part(
            "aggregate",
            "owner wakes up",
            _pause(slowest + slowest_add) / 2,
            "nothing: who waits without burning a core looks only now and then",
        ),
        *_masks(config, busy, spread, costs, network, owner, shared),
        Part(
            "aggregate",
            f"sum to the owner, {topology}",
            collective(sum_bytes, chunk, topology, busy, network.reduce),
            f"{tree}, or a smaller model",
        ),
        Part(
            "aggregate",
            "owner: reports, new model",
            owner.gather,
            "fewer workers with more clients each: the owner hears every worker",
        ),
        Part(
            "evaluate",
            "owner: evaluation",
            evaluation,
            "--eval-every, or fewer held-out rows: the workers wait meanwhile",
        ),
    ]
    sent = round(spread.busy) * (costs.vector_bytes + sum_bytes)
    return Prediction(parts, spread, sent)


def _pause(waited: float) -> float:
    """Seconds between two looks of a rank that has waited so long, see `wait_until`."""
    return min(SHARE * waited, LONGEST_PAUSE)


def _masks(
    config: Config,
    busy: Machine,
    spread: Load,
    costs: Costs,
    network: Network,
    owner: OwnerCosts,
    shared: Callable[[float], tuple[float, float]],
) -> list[Part]:
    """What secure aggregation by shares adds."""
    if config.federated.secure.kind == "none":
        return []
    neighbours = degree(max(spread.cohort, 2), config.federated.secure.neighbours)
    workers = busy.ranks - 1
    # Masks between clients of one worker are left out.
    elsewhere = neighbours * (1 - (spread.mean - 1) / max(spread.cohort - 1, 1))
    told = spread.cohort * AGREED_BYTES
    agree = workers * (network.message + told * network.broadcast.beta)
    return [
        Part(
            "broadcast",
            "owner: who masks with whom",
            agree,
            "a smaller cohort: every worker is told all of it",
        ),
        Part(
            "aggregate",
            "masks of the workers",
            shared((1 + elsewhere) * costs.mask)[1],
            "more ranks, or fewer --secure.neighbours",
        ),
        Part(
            "aggregate",
            "owner: opening the masks",
            owner.open_client * spread.cohort,
            "a smaller cohort: the owner removes one mask for each client",
        ),
    ]
