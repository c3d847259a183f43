from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import DataConfig, Recipe
from fedmpi.data import prepare as prepare_module
from fedmpi.data import source as source_module
from fedmpi.data.blocks import held_out
from fedmpi.data.index import Index, read_index
from fedmpi.data.plan import auto_path, plan
from fedmpi.data.prepare import (
    clients_in_memory,
    write_index,
    write_shards,
    write_test,
)
from fedmpi.data.shard import open_shard
from fedmpi.errors import DataError, UsageError
from fedmpi.workers.shards import prepare

IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

SaveNpz = Callable[..., Recipe]


def contents(folder: Path, index: Index) -> dict[int, tuple[list[float], list[int]]]:
    """What every client of a dataset holds, whichever shard it is in."""
    found: dict[int, tuple[list[float], list[int]]] = {}
    for k in range(len(index.shards)):
        shard = open_shard(folder, index, k, cache_mib=1)
        for client in shard.ids:
            assert client not in found
            x, y = shard.load(client)
            assert shard.rows(client) == len(x) == len(y)
            found[client] = x.flatten().tolist(), y.tolist()
        shard.close()
    return found


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological", "quantity", "natural"])
def test_clients_do_not_depend_on_the_number_of_workers(
    partition: str, save_npz: SaveNpz, tmp_path: Path
) -> None:
    x = np.arange(300, dtype=np.float32)[:, None]
    recipe = save_npz(
        {"clients": 20, "partition": partition, "by": "site", "normalise": "none"},
        x=x,
        y=np.arange(300) % 5,
        site=np.arange(300) % 11,
    )
    indices = {workers: prepare(recipe, workers, tmp_path / f"{workers}") for workers in (1, 3, 7)}
    found = {
        workers: contents(tmp_path / f"{workers}", index) for workers, index in indices.items()
    }
    assert found[1] == found[3] == found[7]
    assert len({index.dataset for index in indices.values()}) == 1
    assert sorted(found[1]) == list(range(11 if partition == "natural" else 20))
    rows = [row for xs, _ in found[1].values() for row in xs]
    test_rows = next(iter(held_out(tmp_path / "1", indices[1], 100, 1)))[0].flatten().tolist()
    assert sorted(rows + test_rows) == x.flatten().tolist()
    for xs, ys in found[1].values():
        assert xs == sorted(xs)  # a client's rows keep the order of the source
        assert [int(value) % 5 for value in xs] == ys


@pytest.mark.parametrize("block_bytes", [12, 100, 2**20])
def test_blocks_of_any_size_give_the_same_bytes(
    numbered: Recipe, tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(numbered, 3, tmp_path / "expected")
    monkeypatch.setattr(source_module, "BLOCK_BYTES", block_bytes)
    assert prepare(numbered, 3, tmp_path / "found") == expected


def test_shards_written_apart_are_those_written_together(
    prepared: tuple[Path, Index], numbered: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "apart"
    folder.mkdir()
    infos = [write_shards(plan(numbered, 3), folder, [k])[0] for k in (2, 0, 1)]
    made = plan(numbered, 3)
    index = write_index(made, folder, [infos[1], infos[2], infos[0]], write_test(made, folder))
    assert index == prepared[1] == read_index(folder)


def test_many_shards_need_several_passes(
    numbered: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(numbered, 7, tmp_path / "expected")
    monkeypatch.setattr(prepare_module, "OPEN_FILES", 2)
    assert prepare(numbered, 7, tmp_path / "found") == expected


def test_in_memory_is_what_the_shard_holds(prepared: tuple[Path, Index], numbered: Recipe) -> None:
    folder, index = prepared
    for k in range(3):
        arrays = clients_in_memory(plan(numbered, 3), k)
        shard = open_shard(folder, index, k, cache_mib=0)
        assert arrays.client_id.tolist() == shard.ids
        for i, client in enumerate(shard.ids):
            x, y = shard.load(client)
            rows = slice(arrays.client_offset[i], arrays.client_offset[i + 1])
            assert np.array_equal(x.numpy(), arrays.x[rows])
            assert np.array_equal(y.numpy(), arrays.y[rows])
        shard.close()


def test_the_index_tells_what_is_there(prepared: tuple[Path, Index], numbered: Recipe) -> None:
    folder, index = prepared
    assert read_index(folder) == index
    assert (index.rows, index.clients, index.test.rows) == (160, 20, 40)
    assert index.recipe == numbered
    assert [shard.file for shard in index.shards] == [f"shard-000{k}.h5" for k in (1, 2, 3)]
    assert np.sum([shard.label_counts for shard in index.shards]) == 160
    assert sorted(os.listdir(folder)) == sorted(
        ["index.json", "test.h5", *(shard.file for shard in index.shards)]
    )


def test_a_data_config_is_a_recipe(numbered: Recipe, tmp_path: Path) -> None:
    config = DataConfig(**dataclasses.asdict(numbered), cache_mib=3)
    assert prepare(config, 3, tmp_path / "a") == prepare(numbered, 3, tmp_path / "b")


def test_a_dataset_is_not_replaced_by_accident(
    prepared: tuple[Path, Index], numbered: Recipe
) -> None:
    folder, index = prepared
    with pytest.raises(UsageError, match="holds a prepared dataset: choose another folder"):
        prepare(numbered, 2, folder)
    assert read_index(folder) == index
    assert len(prepare(numbered, 2, folder, overwrite=True).shards) == 2
    assert sorted(os.listdir(folder)) == ["index.json", "shard-0001.h5", "shard-0002.h5", "test.h5"]


def test_a_bad_row_leaves_no_dataset(save_npz: SaveNpz, tmp_path: Path) -> None:
    x = np.ones((50, 2), np.float32)
    x[33, 1] = np.inf
    recipe = save_npz({"normalise": "none"}, x=x, y=np.arange(50) % 2)
    with pytest.raises(DataError, match=r"own.npz: x\[33\] holds NaN, infinity"):
        prepare(recipe, 2, tmp_path / "dataset")
    assert os.listdir(tmp_path / "dataset") == []


def test_more_workers_than_clients(numbered: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="21 workers but 20 clients"):
        prepare(numbered, 21, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_a_folder_that_cannot_be_made(numbered: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the folder .*/file/dataset: Not a directory"):
        prepare(numbered, 2, tmp_path / "file" / "dataset")


def test_auto_path(numbered: Recipe) -> None:
    path = auto_path(Recipe(clients=70), 7)
    assert path.parent == Path("data/auto")
    assert path.name.startswith("mnist5k-iid-70c-")
    assert path.name.endswith("-7w")
    others = [Recipe(clients=71), Recipe(clients=70, partition_seed=1), Recipe(clients=70, alpha=1)]
    assert (
        len({path, auto_path(Recipe(clients=70), 6), *(auto_path(other, 7) for other in others)})
        == 5
    )
    assert auto_path(Recipe(clients=70, root="elsewhere", download=True), 7) == path
    assert auto_path(DataConfig(clients=70, cache_mib=1), 7) == path
    own = auto_path(numbered, 7)
    assert own.name.startswith("own-dirichlet-20c-")
    os.utime(numbered.source, ns=(0, 0))
    assert auto_path(numbered, 7) != own


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", [f"{part}-ubyte" for part in IDX]),
        ("fashion_mnist", [f"FashionMNIST/raw/{part}-ubyte.gz" for part in IDX]),
        ("emnist", [f"emnist-balanced-{p.replace('t10k', 'test')}-ubyte" for p in IDX]),
        ("cifar10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"]),
        ("cifar100", ["cifar-100-python/train", "cifar-100-python/test"]),
    ],
)
def test_auto_path_changes_with_the_raw_files(
    name: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("a", "b"):
        for file in files:
            (tmp_path / root / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / file).write_bytes(b"raw")
    a, b = (auto_path(Recipe(name, root=str(tmp_path / root)), 2) for root in "ab")
    assert a != b
    monkeypatch.chdir(tmp_path / "a")
    assert auto_path(Recipe(name, root="../a"), 2) == a
    os.utime(tmp_path / "a" / files[-1], ns=(0, 0))
    later = auto_path(Recipe(name, root="."), 2)
    (tmp_path / "a" / files[0]).write_bytes(b"other")
    assert len({a, later, auto_path(Recipe(name, root="."), 2)}) == 3


# The child's memory is limited to what it has after the imports and this much more.
STREAM = """
import resource, sys
from fedmpi.config import Recipe
from fedmpi.workers.shards import prepare
from fedmpi.data.shard import open_shard
import torch
torch.set_num_threads(1)
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = before + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
recipe = Recipe(sys.argv[1], clients=10, normalise="standard")
index = prepare(recipe, 2, sys.argv[2])
shard = open_shard(sys.argv[2], index, 0, cache_mib=60)
for client in shard.ids * 2:
    assert shard.load(client)[0].isfinite().all()
print(index.rows)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/statm is Linux")
def test_a_source_larger_than_memory(tmp_path: Path) -> None:
    rows = 400_000  # 400 MB, in a process that may have 300 MB more than its libraries
    np.savez(tmp_path / "own.npz", x=np.ones((rows, 250), np.float32), y=np.arange(rows) % 3)
    arguments = [str(tmp_path / "own.npz"), str(tmp_path / "dataset")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STREAM, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "320000"


@pytest.mark.long
def test_full_mnist(tmp_path: Path) -> None:
    root = os.environ.get("FEDMPI_MNIST")
    if not root:
        pytest.skip("FEDMPI_MNIST names no folder with MNIST's files")
    started = time.monotonic()
    recipe = Recipe("mnist", root=root, clients=100, partition="pathological")
    index = prepare(recipe, 7, tmp_path)
    seconds = time.monotonic() - started
    assert (index.rows, index.test.rows, index.clients) == (60_000, 10_000, 100)
    counts = np.sum([shard.label_counts for shard in index.shards], axis=0)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    [(x, y)] = held_out(tmp_path, index, 10_000, 1000)
    assert x.shape == (10_000, 1, 28, 28)
    assert (y[0].item(), x.max().item()) == (7, 1)
    assert seconds < 30
    print(f"MNIST in 7 shards: {seconds:.2f} s, {resource.getrusage(0).ru_maxrss // 1024} MiB")
