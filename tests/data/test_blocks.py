"""Held-out rows come in the same blocks, from memory or read again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmpi.config import Recipe
from fedmpi.data import source
from fedmpi.data.blocks import Blocks, held_out, held_out_of_source, regrouped
from fedmpi.data.index import Index
from fedmpi.data.plan import plan
from fedmpi.data.shard import Batch
from fedmpi.errors import DataError

Dataset = tuple[Path, Index]


def same(a: Blocks, b: Blocks) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


@pytest.mark.parametrize("cache_mib", [0, 1])
@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1] * 40), (7, [7] * 5 + [5]), (40, [40]), (1000, [40])]
)
def test_blocks_have_a_fixed_size(
    prepared: Dataset,
    numbered: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    sizes: list[int],
    cache_mib: int,
) -> None:
    """Of a prepared dataset and of the source itself, however the source is read."""
    found = held_out(*prepared, rows=rows, cache_mib=cache_mib)
    assert found.rows == 40
    assert [len(y) for _, y in found] == sizes == [len(x) for x, _ in found]
    for block_bytes in (12, 150, 2**20):
        monkeypatch.setattr(source, "BLOCK_BYTES", block_bytes)
        assert same(found, held_out_of_source(plan(numbered, 2), rows, cache_mib))


def test_what_fits_is_read_once() -> None:
    reads = 0

    def read() -> Iterator[Batch]:
        nonlocal reads
        reads += 1
        for _ in range(4):
            yield torch.zeros(64, 1023), torch.zeros(64, dtype=torch.float32)

    for cache_mib, expected in ((1, 1), (0, 3)):
        reads = 0
        blocks = Blocks(read, cache_mib)  # 1 MiB exactly
        assert [len(list(blocks)), len(list(blocks)), blocks.rows] == [4, 4, 256]
        assert reads == expected


def test_nothing_is_kept_of_rows_that_do_not_all_fit() -> None:
    blocks = Blocks(lambda: iter([(torch.zeros(200, 1023), torch.zeros(200))] * 2), 1)
    assert blocks._kept is None
    assert len(list(blocks)) == 2


def test_damage_is_found_at_once(prepared: Dataset) -> None:
    folder, index = prepared
    (folder / "test.h5").write_bytes((folder / "test.h5").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"test.h5 is damaged"):
        held_out(folder, index, 7, 1)
    with pytest.raises(DataError, match=r"test.h5 is truncated"):
        held_out(folder, index, 7, 1, verify=False)


def test_a_file_that_goes_away_is_told(prepared: Dataset) -> None:
    folder, index = prepared
    kept, read_again = held_out(folder, index, 7, 1), held_out(folder, index, 7, 0)
    (folder / "test.h5").unlink()
    assert len(list(kept)) == 6
    with pytest.raises(DataError, match=r"test.h5: No such file"):
        list(read_again)


def test_nothing_to_regroup() -> None:
    assert list(regrouped([], 3)) == []
    empty = np.empty((0, 2)), np.empty(0)
    assert list(regrouped([empty], 3)) == []


# The child's memory is limited to what it has after the imports and this much more.
EVALUATE = """
import resource, sys
from fedmpi.config import Recipe
from fedmpi.data.blocks import held_out
from fedmpi.federated.evaluate import BATCH, evaluate
from fedmpi.workers.shards import prepare
import torch
torch.set_num_threads(1)
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = before + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
index = prepare(Recipe(sys.argv[1], clients=10, normalise="none"), 2, sys.argv[2])
blocks = held_out(sys.argv[2], index, BATCH, cache_mib=60)
model = torch.nn.Linear(250, 3)
for _ in range(2):
    evaluate(model, blocks, 3, torch.device("cpu"))
print(blocks.rows)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/statm is Linux")
def test_held_out_rows_larger_than_memory(tmp_path: Path) -> None:
    rows = 400_000  # 400 MB, in a process that may have 300 MB more than its libraries
    x, y = np.ones((rows, 250), np.float32), np.arange(rows) % 3
    np.savez(tmp_path / "own.npz", x=x[:100], y=y[:100], x_test=x, y_test=y)
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tmp_path / "own.npz"), str(tmp_path / "dataset")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "400000"
