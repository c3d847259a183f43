from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fedmpi.config import Recipe
from fedmpi.data.blocks import held_out
from fedmpi.data.index import Index
from fedmpi.data.normalise import Normalisation
from fedmpi.data.plan import plan
from fedmpi.data.prepare import clients_in_memory
from fedmpi.data.shard import Shard, ShardArrays, open_shard, shard_from_arrays
from fedmpi.errors import DataError
from fedmpi.workers.shards import prepare

Dataset = tuple[Path, Index]
SaveNpz = Callable[..., Recipe]


def test_rows_and_types(prepared: Dataset) -> None:
    shard = open_shard(*prepared, k=0, cache_mib=1)
    for client in shard.ids:
        x, y = shard.load(client)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.shape == (shard.rows(client), 3)
    with pytest.raises(DataError, match=r"shard-0001.h5 has no client 999"):
        shard.load(999)


def test_regression(save_npz: SaveNpz, tmp_path: Path) -> None:
    y = np.linspace(100, 200, 50)
    index = prepare(save_npz(x=y[:, None], y=y), 2, tmp_path / "dataset")
    found = open_shard(tmp_path / "dataset", index, 0, 1)
    x, target = found.load(found.ids[0])
    assert (x.dtype, target.dtype) == (torch.float32, torch.float32)
    assert target.abs().max() < 3
    torch.testing.assert_close(x[:, 0], target, atol=1e-5, rtol=0)
    [(x, target)] = held_out(tmp_path / "dataset", index, 100, 1)
    torch.testing.assert_close(x[:, 0], target, atol=1e-5, rtol=0)


def test_a_shard_in_memory_gives_the_same_tensors(prepared: Dataset, numbered: Recipe) -> None:
    made = plan(numbered, 3)
    stored = open_shard(*prepared, k=1, cache_mib=1)
    sent = shard_from_arrays(clients_in_memory(made, 1), made.normalisation, cache_mib=1)
    assert stored.ids == sent.ids
    for client in stored.ids:
        for a, b in zip(stored.load(client), sent.load(client), strict=True):
            assert torch.equal(a, b)


def arrays_of(sizes: list[int]) -> ShardArrays:
    rows = sum(sizes)
    return ShardArrays(
        np.zeros((rows, 1024), np.float32),
        np.zeros(rows, np.int64),
        np.arange(len(sizes)),
        np.concatenate([[0], np.cumsum(sizes)]),
    )


def is_cached(shard: Shard, client: int) -> bool:
    return client in shard._cache


def test_the_cache_keeps_its_limit() -> None:
    # A row is 4 KiB and 8 bytes: 3 clients of 80 rows fit into 1 MiB, a fourth does not.
    shard = shard_from_arrays(arrays_of([80, 80, 80, 80, 300]), Normalisation(), cache_mib=1)
    for client in (0, 1, 2):
        shard.load(client)
    assert shard.load(0)[0] is shard.load(0)[0]
    shard.load(3)
    assert [is_cached(shard, client) for client in range(4)] == [True, False, True, True]
    shard.load(4)  # larger than the whole cache: read, but not kept, and nothing thrown out
    assert [is_cached(shard, client) for client in range(5)] == [True, False, True, True, False]
    assert shard._cached_bytes == 3 * 80 * (4096 + 8)
    shard.close()
    assert shard._cached_bytes == 0


def test_no_cache() -> None:
    shard = shard_from_arrays(arrays_of([2, 2]), Normalisation(), cache_mib=0)
    assert shard.load(0)[0] is not shard.load(0)[0]


def test_threads_share_a_shard(prepared: Dataset) -> None:
    shard = open_shard(*prepared, k=0, cache_mib=0)
    expected = {client: shard.load(client)[0] for client in shard.ids}
    with ThreadPoolExecutor(8) as pool:
        for client, (x, _) in zip(
            shard.ids * 20, pool.map(shard.load, shard.ids * 20), strict=True
        ):
            assert torch.equal(x, expected[client])


def test_closed_shard_names_itself(prepared: Dataset) -> None:
    shard = open_shard(*prepared, k=0, cache_mib=1)
    shard.close()
    with pytest.raises(DataError, match=r"cannot read .*shard-0001.h5: client \d+:"):
        shard.load(shard.ids[0])


def test_missing_shard(prepared: Dataset) -> None:
    folder, index = prepared
    (folder / "shard-0002.h5").unlink()
    with pytest.raises(DataError, match=r"shard-0002.h5: No such file"):
        open_shard(folder, index, 1, 1)


def test_truncated_shard(prepared: Dataset) -> None:
    folder, index = prepared
    data = (folder / "shard-0002.h5").read_bytes()
    (folder / "shard-0002.h5").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"shard-0002.h5 is damaged, or from another preparation"):
        open_shard(folder, index, 1, 1)
    with pytest.raises(DataError, match=r"shard-0002.h5 is truncated"):
        open_shard(folder, index, 1, 1, verify=False)


def test_a_flipped_bit_anywhere_is_found(prepared: Dataset) -> None:
    folder, index = prepared
    path = folder / "shard-0001.h5"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"shard-0001.h5"):
            open_shard(folder, index, 0, 1)


def test_a_flipped_bit_among_the_rows(prepared: Dataset) -> None:
    folder, index = prepared
    path = folder / "test.h5"
    with h5py.File(path, "r+") as file:
        file["x"][0, 0] += 1
    with pytest.raises(DataError, match=r"test.h5 is damaged.* expected SHA-256 '\w{12}', found"):
        held_out(folder, index, 1000, 1)
    held_out(folder, index, 1000, 1, verify=False)


def test_a_shard_of_another_dataset(prepared: Dataset, numbered: Recipe, tmp_path: Path) -> None:
    folder, index = prepared
    other = dataclasses.replace(numbered, partition_seed=1)
    prepare(other, 3, tmp_path / "other")
    for name in ("shard-0001.h5", "test.h5"):
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(DataError, match=r"shard-0001.h5 is damaged, or from another prep"):
        open_shard(folder, index, 0, 1)
    with pytest.raises(DataError, match=r"shard-0001.h5 belongs to another dataset: expected"):
        open_shard(folder, index, 0, 1, verify=False)
    with pytest.raises(DataError, match=r"test.h5 belongs to another dataset"):
        held_out(folder, index, 1000, 1, verify=False)


def test_shards_that_changed_places(prepared: Dataset) -> None:
    folder, index = prepared
    shutil.copy(folder / "shard-0001.h5", folder / "shard-0002.h5")
    with pytest.raises(DataError, match=r"shard-0002.h5 is damaged.* expected SHA-256"):
        open_shard(folder, index, 1, 1)
    with pytest.raises(DataError, match=r"shard-0002.h5: expected shard = 2, found 1"):
        open_shard(folder, index, 1, 1, verify=False)


def test_a_shard_of_another_number_of_workers(
    prepared: Dataset, numbered: Recipe, tmp_path: Path
) -> None:
    folder, index = prepared
    prepare(numbered, 2, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "shard-0001.h5", folder / "shard-0001.h5")
    with pytest.raises(DataError, match=r"shard-0001.h5: expected shards = 3, found 2"):
        open_shard(folder, index, 0, 1, verify=False)


def replace(file: h5py.File, name: str, change: Callable[[np.ndarray], Any]) -> None:
    values = change(file[name][()])
    del file[name]
    file[name] = values


def set_first(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[0] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("y", set_first(5), r"/y\[0\] is 5: expected a label from 0 to 4"),
        ("y", set_first(-1), r"/y\[0\] is -1: expected a label"),
        ("y", lambda y: y[:-1], r"/y: expected int64 \[\d+\], found int64 \[\d+\]"),
        ("y", lambda y: y.astype(float), r"/y: expected int64 .*, found float64"),
        ("x", lambda x: x[:, :2], r"/x: expected float32 \[\d+, 3\], found float32 \[\d+, 2\]"),
        ("x", lambda x: x.astype("S4"), r"/x: expected float32"),
        ("client/id", lambda ids: ids[:-1], r"/client/id: expected \d+ different clients"),
        ("client/id", lambda ids: ids * 0, r"/client/id: expected \d+ different clients"),
        ("client/id", lambda ids: ids.astype(np.uint64), r"/client/id: .*int64.*found uint64"),
        ("client/id", lambda ids: ids.astype(float), r"/client/id: expected .*found float64"),
        ("client/offset", lambda o: o.astype(np.uint64), r"/client/offset: .*found uint64"),
        ("client/offset", set_first(1), r"/client/offset: expected \d+ numbers from 0 to"),
        (
            "client/offset",
            lambda o: o[:0],
            r"/client/offset: expected \d+ numbers .*found int64 \[0\]",
        ),
        ("client/offset", lambda o: o[[0, 2, 1, *range(3, len(o))]], r"client \d+ has no rows"),
        ("client/offset", lambda o: o[[0, 0, *range(2, len(o))]], r"client \d+ has no rows"),
    ],
)
def test_contents_that_contradict_the_index(
    prepared: Dataset, name: str, change: Callable[[np.ndarray], Any], message: str
) -> None:
    folder, index = prepared
    with h5py.File(folder / "shard-0001.h5", "r+") as file:
        replace(file, name, change)
    with pytest.raises(DataError, match=f"shard-0001.h5: .*{message}"):
        open_shard(folder, index, 0, 1, verify=False)


@pytest.mark.parametrize("name", ["x", "client/id"])
def test_a_dataset_that_claims_more_than_the_file_has(prepared: Dataset, name: str) -> None:
    """Its contents were never written: HDF5 would make terabytes of zeros of it."""
    folder, index = prepared
    with h5py.File(folder / "shard-0001.h5", "r+") as file:
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, (2**40,), dtype)
    with pytest.raises(DataError, match=rf"shard-0001.h5: /{name} has no contents of the size"):
        open_shard(folder, index, 0, 1, verify=False)


def test_nan_names_the_client(prepared: Dataset) -> None:
    folder, index = prepared
    with h5py.File(folder / "shard-0001.h5", "r+") as file:
        file["x"][0, 1] = np.nan
    with h5py.File(folder / "test.h5", "r+") as file:
        file["x"][0, 1] = np.inf
    shard = open_shard(folder, index, 0, 1, verify=False)
    first, *others = shard.ids
    with pytest.raises(DataError, match=f"shard-0001.h5: client {first} has NaN or infinity in x"):
        shard.load(first)
    for client in others:
        shard.load(client)
    with pytest.raises(DataError, match=r"test.h5 has NaN or infinity in x"):
        held_out(folder, index, 1000, 1, verify=False)


def test_external_link_in_a_shard(prepared: Dataset) -> None:
    folder, index = prepared
    with h5py.File(folder / "shard-0001.h5", "r+") as file:
        del file["x"]
        file["x"] = h5py.ExternalLink("shard-0002.h5", "/x")
    with pytest.raises(DataError, match=r"shard-0001.h5: /x is a link to elsewhere"):
        open_shard(folder, index, 0, 1, verify=False)
