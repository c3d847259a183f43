"""Clients of shards that are not a worker's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmpi.config import Recipe
from fedmpi.data import visits as module
from fedmpi.data.index import read_index
from fedmpi.data.shard import open_shard
from fedmpi.data.visits import Visits
from fedmpi.errors import DataError
from fedmpi.workers.shards import prepare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(Recipe(source="digits", clients=10), 5, tmp_path / "digits")
    return tmp_path / "digits"


def test_rows_are_those_of_the_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    index = read_index(folder)
    visits = Visits(folder, index)
    assert visits.possible
    for _ in range(2):
        for k in range(5):
            shard = open_shard(folder, index, k, cache_mib=0)
            for client in shard.ids:
                assert visits.shard(k).rows(client) == shard.rows(client)
                for mine, theirs in zip(
                    visits.shard(k).load(client), shard.load(client), strict=True
                ):
                    assert torch.equal(mine, theirs)
            shard.close()
            assert len(visits._open) <= 2


def test_a_client_of_another_shard(folder: Path) -> None:
    visits = Visits(folder, read_index(folder))
    with pytest.raises(DataError, match="has no client 9"):
        visits.shard(0).load(9)


def test_a_folder_of_ones_own_shard_alone(folder: Path) -> None:
    index = read_index(folder)
    (folder / index.shards[-1].file).unlink()
    visits = Visits(folder, index)
    assert not visits.possible
    with pytest.raises(DataError, match=index.shards[-1].file):
        visits.shard(4)
