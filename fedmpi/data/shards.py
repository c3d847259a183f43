"""Several shards on one worker: its own, and those of workers that have died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fedmpi.data.shard import Batch


class Clients(Protocol):
    """What `Shard` and `Shards` both are: clients with rows."""

    ids: list[int]

    def rows(self, client: int) -> int: ...

    def load(self, client: int) -> Batch: ...

    def close(self) -> None: ...


class Shards:
    """As one `Shard` with the clients of all parts, each of which keeps its own cache.

    Args:
        parts: with clients that no other part has.

    Attributes:
        ids: of all clients, ascending.
    """

    def __init__(self, parts: Sequence[Clients]) -> None:
        self._parts = list(parts)
        self._part_of = {client: part for part in parts for client in part.ids}
        self.ids = sorted(self._part_of)

    def rows(self, client: int) -> int:
        return self._part_of[client].rows(client)

    def load(self, client: int) -> Batch:
        return self._part_of[client].load(client)

    def close(self) -> None:
        for part in self._parts:
            part.close()
