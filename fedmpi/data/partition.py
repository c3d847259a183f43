"""Which client has which row: the partitioners, and which worker has which client.

Every partitioner is a pure function of the labels, its parameters and a generator. It
gives `client_of_row`, int32 [rows], in which each of 0..clients-1 occurs at least once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import Recipe
from fedmpi.data import draws
from fedmpi.errors import UsageError

ClientOfRow = NDArray[np.int32]


def iid(rows: int, clients: int, rng: np.random.Generator) -> ClientOfRow:
    """Rows dealt at random; the sizes of two clients differ by one row at most.

    The IID split of McMahan et al., "Communication-Efficient Learning of Deep Networks
    from Decentralized Data", AISTATS 2017.

    Raises:
        UsageError: more clients than rows.
    """
    _require_rows(rows, clients)
    client_of_row = np.empty(rows, np.int32)
    client_of_row[rng.permutation(rows)] = np.arange(rows) % clients
    return client_of_row


def pathological(
    labels: NDArray[Any], clients: int, classes_per_client: int, rng: np.random.Generator
) -> ClientOfRow:
    """Label-sorted pieces, `classes_per_client` of them dealt to each client.

    The pathological non-IID split of McMahan et al. 2017: sort the rows by label, cut
    them into clients * classes_per_client pieces of equal size, deal the pieces at
    random. Most clients see that many classes; a piece across a border holds two.

    Args:
        labels: [rows], integers or real targets.
        clients: number of clients.
        classes_per_client: pieces that each client gets.
        rng: the generator that deals the pieces.

    Raises:
        UsageError: more pieces than rows.
    """
    rows, pieces = len(labels), clients * classes_per_client
    if pieces > rows:
        raise UsageError(
            f"clients ({clients}) x classes_per_client ({classes_per_client}) = {pieces} pieces "
            f"but {rows} training rows: lower one of the two"
        )
    piece = np.arange(rows, dtype=np.int64) * pieces // rows
    client_of_row = np.empty(rows, np.int32)
    client_of_row[np.argsort(labels, kind="stable")] = (
        rng.permutation(pieces)[piece] // classes_per_client
    )
    return client_of_row


def dirichlet(
    labels: NDArray[np.int64], clients: int, alpha: float, rng: np.random.Generator
) -> ClientOfRow:
    """Each class divided among the clients by a draw from a symmetric Dirichlet distribution.

    As in Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks",
    ICML 2019. A client that the draw leaves without rows gets one from the client that
    has the most, again and again until none is empty.

    Args:
        labels: int64 [rows].
        clients: number of clients.
        alpha: concentration; small: few classes per client, large: nearly IID.
        rng: the generator of the proportions and of the order within a class.

    Raises:
        UsageError: more clients than rows.
    """
    _require_rows(len(labels), clients)
    client_of_row = np.empty(len(labels), np.int32)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        client_of_row[rows] = np.repeat(
            np.arange(clients), _draw_sizes(len(rows), clients, alpha, rng)
        )
    return _fill_empty_clients(client_of_row, clients)


def quantity(rows: int, clients: int, alpha: float, rng: np.random.Generator) -> ClientOfRow:
    """Random rows, the clients' sizes drawn from a symmetric Dirichlet distribution.

    The quantity skew of Li et al., "Federated Learning on Non-IID Data Silos: An
    Experimental Study", ICDE 2022; each client has one row for certain, and the
    distribution divides the others.

    Raises:
        UsageError: more clients than rows.
    """
    _require_rows(rows, clients)
    sizes = 1 + _draw_sizes(rows - clients, clients, alpha, rng)
    client_of_row = np.empty(rows, np.int32)
    client_of_row[rng.permutation(rows)] = np.repeat(np.arange(clients), sizes)
    return client_of_row


def natural(column: NDArray[Any]) -> ClientOfRow:
    """One client for each value of a column (a writer, a hospital), numbered in sorted order."""
    return np.unique(column, return_inverse=True)[1].astype(np.int32)


def partition(
    recipe: Recipe,
    labels: NDArray[Any],
    classes: int,
    column: Callable[[str], NDArray[Any]],
) -> ClientOfRow:
    """The split that a recipe asks for; it depends on nothing but these arguments.

    Args:
        recipe: partition, clients, alpha, classes_per_client, by and partition_seed; a
            natural partition takes its number of clients from the column instead.
        labels: [rows], labels of the training rows in order.
        classes: number of classes, 0 for regression.
        column: gives the named column of the training rows, [rows].

    Raises:
        UsageError: more clients than the rows allow, or classes needed and none there.
    """
    rng = draws.generator(recipe.partition_seed, draws.CLIENTS)
    if recipe.partition == "iid":
        return iid(len(labels), recipe.clients, rng)
    if recipe.partition == "quantity":
        return quantity(len(labels), recipe.clients, recipe.alpha, rng)
    if recipe.partition == "pathological":
        return pathological(labels, recipe.clients, recipe.classes_per_client, rng)
    if recipe.partition == "natural":
        return natural(column(recipe.by))
    if not classes:
        raise UsageError(
            f"partition = 'dirichlet' divides classes but {recipe.source} is a regression: "
            "use iid, quantity, pathological (sorted by target) or natural"
        )
    return dirichlet(labels, recipe.clients, recipe.alpha, rng)


def workers_of_clients(rows_per_client: NDArray[np.int64], workers: int) -> NDArray[np.int32]:
    """Clients given to workers so that the workers have about equally many rows.

    Longest processing time first (Graham 1969): the largest client left goes to the
    worker with the fewest rows. Ties go to the lower number, so that equal clients go
    round robin and every rank finds the same answer.

    Args:
        rows_per_client: int64 [clients], all positive.
        workers: number of workers, counted from 0 in the result.

    Returns:
        int32 [clients], in which each worker occurs.

    Raises:
        UsageError: more workers than clients.
    """
    clients = len(rows_per_client)
    if workers > clients:
        raise UsageError(
            f"{workers} workers but {clients} clients: use at most {clients} workers, "
            "or more clients"
        )
    worker_of_client = np.empty(clients, np.int32)
    loads = [(0, worker) for worker in range(workers)]
    for client in np.argsort(-rows_per_client, kind="stable"):
        load, worker = loads[0]
        worker_of_client[client] = worker
        heapq.heapreplace(loads, (load + int(rows_per_client[client]), worker))
    return worker_of_client


def _require_rows(rows: int, clients: int) -> None:
    if clients > rows:
        raise UsageError(f"{clients} clients but {rows} training rows: use at most {rows} clients")


def _draw_sizes(
    rows: int, clients: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sizes int64 [clients] that add up to `rows`, by a symmetric Dirichlet draw."""
    share = rng.dirichlet(np.full(clients, alpha))
    cuts = np.minimum(np.floor(np.cumsum(share)[:-1] * rows), rows).astype(np.int64)
    return np.diff(cuts, prepend=0, append=rows)


def _fill_empty_clients(client_of_row: ClientOfRow, clients: int) -> ClientOfRow:
    """Gives each empty client the last row of the client that has the most."""
    sizes = np.bincount(client_of_row, minlength=clients)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return client_of_row
    rows_by_client = np.argsort(client_of_row, kind="stable")
    end = np.cumsum(sizes)
    largest = [(-int(size), client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    for client in empty:
        size, donor = largest[0]
        heapq.heapreplace(largest, (size + 1, donor))
        end[donor] -= 1
        client_of_row[rows_by_client[end[donor]]] = client
    return client_of_row
