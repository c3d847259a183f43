"""Broadcast and sum as commands: in one memory, in any group, and after failures."""

from __future__ import annotations

import pytest
import torch

from fedmpi.comm.collective import broadcast, reduce_sum
from fedmpi.config import CommConfig
from fedmpi.errors import RemoteError
from fedmpi.workers.command import Command, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.vectors import Broadcast, ReduceSum, Route, route_over
from fedmpi.workers.worker import Worker
from tests.comm.worlds import World
from tests.workers.crews import Enter, Journal, Read, Value


class Fill(Command, frozen=True):
    """Stores a vector of the worker's rank."""

    key: str
    length: int


@handles(Fill)
def fill(worker: Worker, command: Fill, tensors: list[torch.Tensor]) -> None:
    worker.store[command.key] = torch.full((command.length,), worker.rank)


class Peek(Command, frozen=True):
    """Asks for the sum of the stored vectors."""

    key: str


@handles(Peek, replies=True)
def look(worker: Worker, command: Peek, tensors: list[torch.Tensor]) -> Value:
    return Value(sum(float(v.sum()) for v in worker.store[command.key]))


class Where(Command, frozen=True):
    """Asks for the address of the first stored vector."""

    key: str


@handles(Where, replies=True)
def where(worker: Worker, command: Where, tensors: list[torch.Tensor]) -> Value:
    return Value(float(worker.store[command.key][0].data_ptr()))


def send(crew: Crew, route: Route, vectors: list[torch.Tensor]) -> None:
    dtypes = [str(v.dtype).removeprefix("torch.") for v in vectors]
    for rank in route.group[1:]:
        crew.tell(rank, Broadcast("v", route, dtypes, [v.numel() for v in vectors]))
    broadcast(crew.endpoint.transport, route.group, vectors, route.topology, route.chunk_bytes)


def add_up(crew: Crew, route: Route, length: int) -> torch.Tensor:
    for rank in route.group[1:]:
        crew.tell(rank, ReduceSum("s", route, length))
    total = torch.zeros(length, dtype=torch.int64)
    reduce_sum(crew.endpoint.transport, route.group, total, route.topology, route.chunk_bytes)
    return total


@pytest.mark.parametrize("topology", ["tree", "star", "nodes"])
def test_vectors_go_down_and_sums_come_up(world: World, topology: str) -> None:
    def scenario(crew: Crew) -> None:
        joined = [rank % 3 for rank in (0, *crew.ranks)] if topology == "nodes" else topology
        route = Route([0, *crew.ranks], joined, 100)
        addresses = None
        for number in (1.0, 2.0):
            send(crew, route, [torch.full((700,), number), torch.full((3,), 5)])
            assert crew.ask(lambda r: Peek("v"), Value) == [Value(700 * number + 15)] * len(
                crew.ranks
            )
            found = crew.ask(lambda r: Where("v"), Value)
            assert addresses in (None, found), "the same layout arrives in the same memory"
            addresses = found
        for rank in crew.ranks:
            crew.tell(rank, Fill("s", 50))
        assert add_up(crew, route, 50).tolist() == [sum(crew.ranks)] * 50
        assert add_up(crew, route, 50).tolist() == [0] * 50  # a sum is given once
        crew.ask(lambda r: Read(), Journal)

    world.lead(scenario)


def test_nobody_waits_for_its_sum_to_be_taken(world: World) -> None:
    def scenario(crew: Crew) -> None:
        route = Route([0, *crew.ranks], "star", 2**19)
        length = 2**18  # of which no transport keeps a copy
        for rank in crew.ranks:
            crew.tell(rank, Fill("s", length))
            crew.tell(rank, ReduceSum("s", route, length))
        crew.ask(lambda r: Read(), Journal)
        total = torch.zeros(length, dtype=torch.int64)
        reduce_sum(crew.endpoint.transport, route.group, total, "star", 2**19)
        assert total.unique().tolist() == [sum(crew.ranks)]
        crew.ask(lambda r: Read(), Journal)

    world.lead(scenario)


def test_a_layout_may_change(world: World) -> None:
    def scenario(crew: Crew) -> None:
        for vectors in (
            [torch.ones(10)],
            [torch.ones(10, dtype=torch.float64)],
            [torch.ones(20), torch.ones(0)],
            [torch.ones(7, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bool), torch.ones(1)],
        ):
            send(crew, Route([0, *crew.ranks], "tree", 16), vectors)
            count = sum(v.numel() for v in vectors)
            assert crew.ask(lambda r: Peek("v"), Value) == [Value(float(count))] * len(crew.ranks)

    world.lead(scenario)


def test_a_group_may_be_a_part_of_the_workers(world: World) -> None:
    def scenario(crew: Crew) -> None:
        group = [0, *crew.ranks[::2][::-1]]
        for rank in crew.ranks:
            crew.tell(rank, Fill("s", 9))
        total = add_up(crew, Route(group, "tree", 8), 9)
        assert total.tolist() == [sum(group)] * 9
        crew.ask(lambda r: Read(), Journal)

    world.lead(scenario)


def test_a_worker_that_failed_still_passes_on_what_others_need(world: World) -> None:
    """Rank 1 fails first; the broadcast reaches everybody, and its part of the sum is zero."""

    def scenario(crew: Crew) -> None:
        route = Route([0, *crew.ranks], "tree", 64)
        crew.tell(1, Enter("x", "bug"))
        for rank in crew.ranks:
            crew.tell(rank, Fill("s", 30))
        send(crew, route, [torch.ones(100)])
        total = add_up(crew, route, 30)
        assert total.tolist() == [sum(crew.ranks) - 1] * 30
        for rank in crew.ranks:
            crew.tell(rank, Read())
        with pytest.raises(RemoteError, match="worker on rank 1: ZeroDivisionError: at x"):
            crew.hear(crew.ranks, Journal)
        assert crew.ask(lambda r: Peek("v"), Value) == [Value(100.0)] * len(crew.ranks)

    world.lead(scenario)


def test_a_vector_of_another_length_counts_as_none(world: World) -> None:
    def scenario(crew: Crew) -> None:
        for rank in crew.ranks:
            crew.tell(rank, Fill("s", 31 if rank == 1 else 30))
        total = add_up(crew, Route([0, *crew.ranks], "star", 64), 30)
        assert total.tolist() == [sum(crew.ranks) - 1] * 30
        crew.ask(lambda r: Read(), Journal)

    world.lead(scenario)


def test_with_more_workers_than_asked_the_tree_is_one_of_nodes() -> None:
    nodes = [0, 1, 0, 1, 4]
    for above, topology in ((0, [0, 1, 4]), (1, [0, 1, 4]), (2, "tree")):
        comm = CommConfig(hierarchy_above=above, chunk_kib=2)
        assert route_over([0, 3, 4], comm, nodes) == Route([0, 3, 4], topology, 2048)
    star = CommConfig(topology="star")
    assert route_over([0, 3, 4], star, nodes).topology == "star"


def test_a_part_of_a_route_keeps_its_nodes() -> None:
    whole = Route([0, 1, 2, 5], [0, 1, 0, 1], 64)
    assert whole.among([5, 2]) == Route([0, 5, 2], [0, 1, 0], 64)
    assert Route([0, 1, 2], "star", 64).among([2]) == Route([0, 2], "star", 64)


@pytest.mark.parametrize("nodes", [[], [0], [0, 0, 1, 1]])
def test_a_route_needs_a_node_for_each_rank(nodes: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(nodes)} nodes for 3 ranks"):
        Route([0, 1, 2], nodes, 64)
