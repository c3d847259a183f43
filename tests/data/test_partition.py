from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.config import Recipe
from fedmpi.data import draws
from fedmpi.data.partition import (
    dirichlet,
    iid,
    natural,
    partition,
    pathological,
    quantity,
    workers_of_clients,
)
from fedmpi.errors import DataError, UsageError

seeds = st.integers(0, 2**63 - 1)
alphas = st.floats(1e-6, 1e6)


def rng(seed: int) -> np.random.Generator:
    return draws.generator(seed, draws.CLIENTS)


def check(client_of_row: np.ndarray, rows: int, clients: int) -> np.ndarray:
    """Every row has a client, every client has a row. Returns the clients' sizes."""
    assert client_of_row.shape == (rows,)
    assert client_of_row.dtype == np.int32
    assert client_of_row.min() >= 0
    sizes = np.bincount(client_of_row, minlength=clients)
    assert len(sizes) == clients
    assert sizes.min() >= 1
    return sizes


@given(st.integers(1, 300), st.data(), seeds)
def test_iid_clients_have_equal_sizes(rows: int, data: st.DataObject, seed: int) -> None:
    clients = data.draw(st.integers(1, rows))
    sizes = check(iid(rows, clients, rng(seed)), rows, clients)
    assert sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.data(), alphas, seeds)
def test_dirichlet_leaves_no_client_empty(
    labels: list[int], data: st.DataObject, alpha: float, seed: int
) -> None:
    clients = data.draw(st.integers(1, len(labels)))
    check(dirichlet(np.array(labels), clients, alpha, rng(seed)), len(labels), clients)


def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def largest_share(alpha: float) -> float:
        """Mean over clients of the share of a client's rows that its commonest class has."""
        clients = dirichlet(labels, 20, alpha, rng(0))
        counts = np.zeros((20, 10))
        np.add.at(counts, (clients, labels), 1)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    assert largest_share(0.05) > 0.6
    assert largest_share(1e5) < 0.12


@given(st.integers(1, 20), st.integers(1, 5), st.data(), seeds)
def test_pathological_pieces(
    clients: int, classes_per_client: int, data: st.DataObject, seed: int
) -> None:
    pieces = clients * classes_per_client
    labels = np.array(data.draw(st.lists(st.integers(0, 9), min_size=pieces, max_size=4 * pieces)))
    found = pathological(labels, clients, classes_per_client, rng(seed))
    sizes = check(found, len(labels), clients)
    assert sizes.max() - sizes.min() <= classes_per_client
    in_order = found[np.argsort(labels, kind="stable")]
    assert np.count_nonzero(np.diff(in_order)) < pieces


def test_pathological_clients_of_mnist_see_two_classes() -> None:
    labels = np.repeat(np.arange(10), 6000)
    found = pathological(labels, 100, 2, rng(3))
    assert all(len(np.unique(labels[found == client])) <= 2 for client in range(100))


@given(st.integers(1, 300), st.data(), alphas, seeds)
def test_quantity_skew(rows: int, data: st.DataObject, alpha: float, seed: int) -> None:
    clients = data.draw(st.integers(1, rows))
    check(quantity(rows, clients, alpha, rng(seed)), rows, clients)


def test_natural_clients_are_the_sorted_values() -> None:
    assert natural(np.array(["b", "a", "c", "a"])).tolist() == [1, 0, 2, 0]
    assert natural(np.array([30, -1, 30])).tolist() == [1, 0, 1]


def no_column(name: str) -> np.ndarray:
    raise DataError(name)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological", "quantity"])
def test_partition_depends_on_the_partition_seed_only(kind: str) -> None:
    labels = np.arange(500) % 10

    def split(**other: object) -> list[int]:
        recipe = Recipe(clients=20, partition=kind, **other)  # type: ignore[arg-type]
        return partition(recipe, labels, 10, no_column).tolist()

    assert split() == split(root="elsewhere", test_fraction=0.3, normalise="none")
    assert split() != split(partition_seed=1)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological", "quantity"])
def test_more_clients_than_rows(kind: str) -> None:
    recipe = Recipe(clients=51, partition=kind, classes_per_client=1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"51.*50 training rows"):
        partition(recipe, np.arange(50) % 10, 10, no_column)


def test_too_many_pathological_pieces() -> None:
    with pytest.raises(UsageError, match=r"clients \(30\) x classes_per_client \(2\) = 60 pieces"):
        pathological(np.zeros(50), 30, 2, rng(0))


def test_dirichlet_needs_classes() -> None:
    with pytest.raises(UsageError, match=r"boston is a regression: use iid"):
        partition(Recipe("boston", partition="dirichlet", clients=2), np.ones(9), 0, no_column)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=100), st.data())
def test_workers_share_the_rows(sizes: list[int], data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, len(sizes)))
    found = workers_of_clients(np.array(sizes), workers)
    assert set(found.tolist()) == set(range(workers))
    loads = np.bincount(found, weights=sizes)
    # Graham's bound: no worker has more than 4/3 of the best possible, which is at least this.
    assert loads.max() <= 4 / 3 * max(max(sizes), sum(sizes) / workers) + max(sizes)


def test_equal_clients_go_round_robin() -> None:
    assert workers_of_clients(np.full(7, 5), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_largest_client_goes_first() -> None:
    assert workers_of_clients(np.array([1, 2, 9, 3, 4]), 2).tolist() == [0, 1, 0, 1, 1]


def test_more_workers_than_clients() -> None:
    with pytest.raises(UsageError, match="4 workers but 3 clients: use at most 3 workers"):
        workers_of_clients(np.ones(3, np.int64), 4)
