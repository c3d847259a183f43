"""Broadcast and exact sum over trees and stars, of every group of every world."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.comm.collective import (
    PIECES,
    Topology,
    _piece_bytes,
    broadcast,
    place,
    reduce_sum,
)
from fedmpi.comm.transport import Transport
from tests.comm.worlds import World, same

TOPOLOGIES = ("tree", "star")

# ---- the shape of the tree ----


@given(st.integers(1, 300), st.sampled_from(TOPOLOGIES), st.randoms(use_true_random=False))
def test_every_rank_but_the_root_has_one_parent_that_knows_it(n, topology, shuffler) -> None:
    group = shuffler.sample(range(2 * n), n)
    places = {rank: place(rank, group, topology) for rank in group}
    assert places[group[0]].parent is None
    for rank in group[1:]:
        assert places[places[rank].parent].children.count(rank) == 1
    assert sum(len(p.children) for p in places.values()) == n - 1
    steps = {rank: depth(rank, places) for rank in group}  # ends, so there is no circle
    assert max(steps.values()) <= (n.bit_length() if topology == "tree" else 1)
    if topology == "tree":
        assert max(steps.values()) == max(bin(i).count("1") for i in range(n))
        assert max(len(p.children) for p in places.values()) == (n - 1).bit_length()


def depth(rank: int, places: dict) -> int:
    parent = places[rank].parent
    return 0 if parent is None else 1 + depth(parent, places)


def test_the_binomial_tree_of_eight() -> None:
    """The largest subtree comes first, since it needs the longest."""
    children = {rank: place(rank, range(8), "tree").children for rank in range(8)}
    assert children == {0: (4, 2, 1), 1: (), 2: (3,), 3: (), 4: (6, 5), 5: (), 6: (7,), 7: ()}


@st.composite
def groups_on_nodes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A group in any order, and the node of each rank: unequal ones, single ranks, one for all."""
    n = draw(st.integers(1, 60))
    group = draw(st.permutations(range(2 * n)))[:n]
    return group, draw(st.lists(st.integers(0, draw(st.integers(0, n))), min_size=n, max_size=n))


@given(groups_on_nodes())
def test_a_tree_of_nodes_enters_every_node_once(case: tuple[list[int], list[int]]) -> None:
    group, nodes = case
    node = dict(zip(group, nodes, strict=True))
    places = {rank: place(rank, group, nodes) for rank in group}
    assert places[group[0]].parent is None
    for rank in group[1:]:
        assert places[places[rank].parent].children.count(rank) == 1
    assert sum(len(p.children) for p in places.values()) == len(group) - 1
    leaders = [r for r, p in places.items() if p.parent is None or node[p.parent] != node[r]]
    assert sorted(node[leader] for leader in leaders) == sorted(set(nodes))
    largest = max(nodes.count(k) for k in nodes)
    levels = len(leaders).bit_length() + largest.bit_length()
    assert max(depth(rank, places) for rank in group) <= levels
    for rank, p in places.items():
        away = [node[child] != node[rank] for child in p.children]
        assert away == sorted(away, reverse=True)  # other nodes first


@given(st.integers(1, 100), st.randoms(use_true_random=False))
def test_on_one_node_or_one_rank_a_node_it_is_the_plain_tree(n: int, shuffler) -> None:
    group = shuffler.sample(range(2 * n), n)
    for rank in group:
        plain = place(rank, group, "tree")
        assert place(rank, group, [7] * n) == place(rank, group, list(range(n))) == plain


def test_the_tree_of_nodes_of_eight_dealt_round_three() -> None:
    children = {rank: place(rank, range(8), [0, 1, 2] * 2 + [0, 1]).children for rank in range(8)}
    assert children == {0: (2, 1, 6, 3), 1: (7, 4), 2: (5,), 3: (), 4: (), 5: (), 6: (), 7: ()}


# ---- vectors ----


def groups_of(size: int) -> list[list[int]]:
    """All ranks in three orders, parts of them with and without the owner, one rank alone."""
    everybody = list(range(size))
    shuffled = random.Random(size).sample(everybody, size)
    parts = [
        everybody[::-1],
        shuffled,
        everybody[1:],
        everybody[::2],
        shuffled[: (size + 1) // 2],
        [size - 1],
    ]
    chosen = [everybody, *parts]
    return [list(g) for g in dict.fromkeys(map(tuple, chosen))]


def cases(size: int) -> list[tuple[list[int], Topology]]:
    """Every group as a tree, as a star, and on made-up nodes: two, and unequal ones."""
    shaped = []
    for group in groups_of(size):
        by_node = [[rank % 2 for rank in group], [rank // 3 % 2 for rank in group]]
        shaped += [(group, topology) for topology in (*TOPOLOGIES, *by_node)]
    return shaped


def random_vector(n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, high, (n * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


DTYPES = (torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.complex128)


@pytest.mark.parametrize(
    ("lengths", "chunk_bytes"),
    [
        ((1, 5, 40, 0, 3), 1),  # pieces of one element
        ((17, 0, 0, 64, 9), 8),
        ((1000, 3001, 2, 77, 640), 1000),
        ((3000, 1, 500, 20, 0), 2**20),  # one piece each
        ((0, 0, 0, 0, 0), 64),
        ((), 64),
    ],
    ids=str,
)
def test_broadcast(world: World, lengths: tuple[int, ...], chunk_bytes: int) -> None:
    def scenario(transport: Transport) -> None:
        for seed, (group, topology) in enumerate(cases(transport.size)):
            expected = [
                random_vector(n, dtype, seed) for n, dtype in zip(lengths, DTYPES, strict=False)
            ]
            root = transport.rank == group[0]
            vectors = [v.clone() if root else torch.zeros_like(v) for v in expected]
            if transport.rank in group:
                broadcast(transport, group, vectors, topology, chunk_bytes)
                assert all(map(same, vectors, expected)), (group, topology)
                for vector in vectors:
                    vector.zero_()  # on return the vectors may be changed

    world.run(scenario)


def any_int64(n: int, seed: int) -> torch.Tensor:
    """All bits random: sums of these wrap."""
    return random_vector(n, torch.int64, seed)


@pytest.mark.parametrize(
    ("length", "chunk_bytes"),
    [(40, 1), (40, 8), (41, 24), (5000, 4096), (5000, 10**6), (1, 8), (0, 8)],
    ids=str,
)
def test_reduce_sum(world: World, length: int, chunk_bytes: int) -> None:
    def scenario(transport: Transport) -> None:
        for seed, (group, topology) in enumerate(cases(transport.size)):
            if transport.rank not in group:
                continue
            vector = any_int64(length, 1000 * seed + transport.rank)
            reduce_sum(transport, group, vector, topology, chunk_bytes)
            if transport.rank == group[0]:
                expected = torch.zeros(length, dtype=torch.int64)
                for rank in group:
                    expected += any_int64(length, 1000 * seed + rank)
                assert same(vector, expected), (group, topology)

    world.run(scenario)


def test_extreme_values_wrap_alike(world: World) -> None:
    ends = torch.tensor([2**63 - 1, -(2**63), -1, 0, 2**62])

    def scenario(transport: Transport) -> list[torch.Tensor]:
        found = []
        for topology in TOPOLOGIES:
            vector = ends.clone()
            reduce_sum(transport, range(transport.size), vector, topology, 16)
            found.append(vector)
        return found

    if 0 in (results := world.run(scenario)):
        expected = sum((ends for _ in range(world.size)), torch.zeros(5, dtype=torch.int64))
        assert all(same(vector, expected) for vector in results[0])


def test_many_in_a_row_do_not_mix(world: World) -> None:
    """Back to back, with groups and topologies that change, and nobody waiting in between."""

    def scenario(transport: Transport) -> None:
        size = transport.size
        plan = random.Random(5)
        for number in range(60):
            group = plan.sample(range(size), plan.randint(1, size))
            made_up = [plan.randint(0, 2) for _ in group]
            topology, chunk = plan.choice((*TOPOLOGIES, made_up)), plan.choice((8, 80, 4000))
            length, down = plan.choice((0, 1, 10, 300)), plan.random() < 0.5
            if transport.rank not in group:
                continue
            root = transport.rank == group[0]
            if down:
                sent = any_int64(length, number)
                vector = sent.clone() if root else torch.zeros_like(sent)
                broadcast(transport, group, [vector], topology, chunk)
                assert same(vector, sent), number
            else:
                vector = any_int64(length, 100 * number + transport.rank)
                reduce_sum(transport, group, vector, topology, chunk)
                expected = torch.zeros(length, dtype=torch.int64)
                for rank in group:
                    expected += any_int64(length, 100 * number + rank)
                assert not root or same(vector, expected), number

    world.run(scenario)


def test_what_travels_is_counted(world: World) -> None:
    """Every topology moves the same bytes: one vector for each rank but the root."""

    def scenario(transport: Transport) -> int:
        before = transport.bytes_sent
        for topology in TOPOLOGIES:
            broadcast(transport, range(transport.size), [torch.zeros(100)], topology, 128)
            reduce_sum(
                transport, range(transport.size), torch.zeros(50, dtype=torch.int64), topology, 128
            )
        return transport.bytes_sent - before

    sent = world.run(scenario)
    if world.threads:
        assert sum(sent.values()) == 4 * 400 * (world.size - 1)
    else:
        assert all(n % 400 == 0 for n in sent.values())


# ---- pieces ----


@given(st.integers(0, 10**9), st.integers(1, 300), st.integers(1, 10**7))
def test_a_vector_travels_whole_where_nobody_passes_it_on(nbytes, members, chunk_bytes) -> None:
    assert _piece_bytes(nbytes, members, "star", chunk_bytes) >= nbytes
    step = _piece_bytes(nbytes, members, "tree", chunk_bytes)
    passes_on = any(
        here.parent is not None and here.children
        for here in (place(rank, range(members), "tree") for rank in range(members))
    )
    if passes_on:
        assert step >= chunk_bytes
        assert -(-nbytes // step) <= PIECES
        assert step == chunk_bytes or nbytes > PIECES * chunk_bytes
    else:
        assert step >= max(nbytes, 1)
