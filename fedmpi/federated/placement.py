"""Who trains whom in a round: clients go evenly to workers, most of them to their own.

The clients of a cohort are seldom spread over the shards as evenly as over all rounds: of 10 out of
two shards of 50, one shard has 6 or more in three rounds of four. A round takes as long as its
slowest worker, so that a client is lent to another worker where that shortens it. Sums are exact
and draws belong to clients: no bit depends on who trains whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heapreplace

from fedmpi.config import Config

WORTH = 0.05
"""A worker may have so much more than its share: a client of another shard has to be read first."""
WORTH_SECONDS = 1e-3
"""Of a round: to say who is lent, and to read it, takes a few tenths of that."""


def may_lend(config: Config) -> bool:
    """Whether nothing that the configuration asks for stays with the worker that holds a client."""
    from fedmpi.federated.strategies import strategy_class

    federated = config.federated
    step = strategy_class(federated.strategy.kind).client_step
    if step and step.remembers:
        return False
    kept = federated.privacy.kind == "local" or config.attack.kind != "none"
    return config.comm.balance != "off" and federated.mode == "shards" and not kept


def spread(
    cohort: Sequence[int],
    rows: Mapping[int, int],
    holder: Mapping[int, int],
    ranks: Sequence[int],
) -> dict[int, int]:
    """The rank that trains each client.

    A worker keeps its own clients, the largest first, up to little more than an even share of the
    cohort's rows; what is left over goes, the largest first, to the worker with the fewest so far.

    Args:
        cohort: the round's clients.
        rows: of each client: what it costs.
        holder: the worker in whose shard it is.
        ranks: of all workers.

    Returns:
        Rank by client.
    """
    share = (1 + WORTH) * sum(rows[c] for c in cohort) / len(ranks)
    load = dict.fromkeys(ranks, 0)
    placed: dict[int, int] = {}
    left_over = []
    for client in sorted(cohort, key=lambda c: (-rows[c], c)):
        rank = holder[client]
        # One that is larger than a share has to be somewhere, and nobody else is better.
        if load[rank] == 0 or load[rank] + rows[client] <= share:
            placed[client] = rank
            load[rank] += rows[client]
        else:
            left_over.append(client)
    lightest = [(rows_so_far, rank) for rank, rows_so_far in load.items()]
    heapify(lightest)
    for client in left_over:
        rows_so_far, rank = lightest[0]
        placed[client] = rank
        heapreplace(lightest, (rows_so_far + rows[client], rank))
    return placed


def saved_rows(
    placed: Mapping[int, int], rows: Mapping[int, int], holder: Mapping[int, int]
) -> int:
    """Rows that the fullest worker has less than if all trained the clients that they hold."""
    now: Counter[int] = Counter()
    before: Counter[int] = Counter()
    for client, rank in placed.items():
        now[rank] += rows[client]
        before[holder[client]] += rows[client]
    return max(before.values()) - max(now.values())
