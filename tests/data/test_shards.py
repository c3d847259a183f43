"""Several shards as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmpi.data.normalise import Normalisation
from fedmpi.data.shard import Shard, ShardArrays, shard_from_arrays
from fedmpi.data.shards import Shards


def shard(clients: list[int]) -> Shard:
    """Client k has k rows, all of them k."""
    offset = np.cumsum([0, *clients])
    x = np.repeat(np.array(clients, dtype="float32"), clients)[:, None]
    y = np.zeros(len(x), dtype="int64")
    return shard_from_arrays(
        ShardArrays(x, y, np.array(clients), offset), Normalisation(), cache_mib=1
    )


def test_clients_of_all_parts() -> None:
    both = Shards([Shards([shard([2, 5]), shard([3])]), shard([1, 9])])
    assert both.ids == [1, 2, 3, 5, 9]
    assert [both.rows(client) for client in both.ids] == both.ids
    for client in both.ids:
        x, y = both.load(client)
        assert torch.equal(x, torch.full((client, 1), float(client)))
        assert len(y) == client
    both.close()


def test_a_client_that_no_part_has() -> None:
    with pytest.raises(KeyError):
        Shards([shard([2, 5])]).rows(3)
