"""A worker's own shard: loaded where it lies, found by tags, as training sees it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import torch

import fedmpi
from fedmpi import cli
from fedmpi.config import Recipe
from fedmpi.data.index import read_index
from fedmpi.data.shard import open_shard
from fedmpi.errors import DataError, RemoteError, UsageError
from fedmpi.tensors.shards import load_shards
from fedmpi.workers.shards import prepare
from tests.launch import launchers

Workers = tuple[fedmpi.RemoteWorker, ...]

PRINTS = """
import fedmpi
for worker in fedmpi.workers():
    [x], [y] = worker.search("#digits", "#train", "#x"), worker.search("#digits", "#y")
    print(worker.rank, list(x.shape), int(y.sum()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits: 8 clients in 3 shards."""
    path = tmp_path_factory.mktemp("digits") / "three"
    prepare(Recipe(source="digits", clients=8, partition="dirichlet", partition_seed=1), 3, path)
    return path


@pytest.fixture
def workers() -> Iterator[Workers]:
    with fedmpi.simulate(workers=3) as three:
        yield three


def test_a_shard_is_loaded_as_training_sees_it(workers: Workers, folder: Path) -> None:
    index = read_index(folder)
    for k, worker in enumerate(workers):
        shard = open_shard(folder, index, k, cache_mib=0)
        x, y, client, offset = worker.load_shard(folder)
        starts, all_x, all_y = offset.tolist(), x.get(), y.get()
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert client.tolist() == shard.ids
        assert len(starts) == len(shard.ids) + 1
        assert starts[-1] == len(x) == len(y)
        for i, one in enumerate(shard.ids):
            rows = slice(starts[i], starts[i + 1])
            expected_x, expected_y = shard.load(one)
            assert torch.equal(all_x[rows], expected_x)
            assert torch.equal(all_y[rows], expected_y)
        shard.close()


def test_the_targets_of_a_regression_are_real_numbers(tmp_path: Path) -> None:
    prepare(Recipe(source="diabetes", clients=2), 1, tmp_path / "one")
    with fedmpi.simulate(workers=1) as (alice,):
        x, y, client, _ = alice.load_shard(tmp_path / "one")
        assert y.dtype == torch.float32
        assert y.get().std() == pytest.approx(1, abs=0.05)
        assert list(x.shape)[1:] == [10]
        assert client.tolist() == [0, 1]
        assert alice.objects()[1].description == "targets, one a row"


def test_a_shard_is_found_by_its_tags(workers: Workers, folder: Path) -> None:
    alice, bob, _ = workers
    shard = alice.load_shard(folder)
    for name, pointer in shard._asdict().items():
        [found] = alice.search("#digits", "#train", f"#{name}")
        assert found.remote.key == pointer.remote.key
        assert found.shape == pointer.shape
    assert bob.search("#digits") == []
    assert [o.description for o in alice.objects()] == [
        "rows of digits to train on, normalised",
        "labels 0 to 9, one a row",
        "ids of the clients on this worker, ascending",
        "the i-th client has the rows offset[i] to offset[i + 1]",
    ]


def test_a_shard_lives_as_long_as_its_pointers(workers: Workers, folder: Path) -> None:
    alice = workers[0]
    shard = alice.load_shard(folder)
    assert alice.nbytes() == sum(p.nbytes for p in shard)
    del shard
    gc.collect()
    assert alice.search("#train") == []
    assert alice.nbytes() == 0


def test_a_private_shard_does_not_leave_its_worker(workers: Workers, folder: Path) -> None:
    for shard in load_shards(workers, folder, private=True):
        for pointer in shard:
            for computed in (pointer, pointer[:1], pointer.sum()):
                with pytest.raises(RemoteError, match="private"):
                    computed.get()


def test_a_private_shard_stays_private_where_it_moves(workers: Workers, folder: Path) -> None:
    alice, bob, _ = workers
    moved = alice.load_shard(folder, private=True).x.move(bob)
    with pytest.raises(RemoteError, match="rank 2 keeps"):
        moved.get()


def test_a_shard_beyond_the_memory_limit_is_refused_whole(workers: Workers, folder: Path) -> None:
    alice, bob, _ = workers
    needed = sum(p.nbytes for p in alice.load_shard(folder))
    gc.collect()
    alice.limit_memory(needed - 1)
    with pytest.raises(RemoteError, match=r"worker on rank 1: .*beyond its limit"):
        alice.load_shard(folder)
    assert alice.objects() == []
    alice.limit_memory(needed)
    assert len(alice.load_shard(folder)) == 4
    assert len(bob.load_shard(folder)) == 4


def test_a_damaged_shard_is_refused_and_the_others_go_on(workers: Workers, tmp_path: Path) -> None:
    prepare(Recipe(source="digits", clients=3), 3, tmp_path / "three")
    path = tmp_path / "three" / "shard-0002.h5"
    with h5py.File(path, "r+") as file:
        file["x"][0] = 0

    with pytest.raises(RemoteError, match=r"worker on rank 2: .*shard-0002.h5 is damaged"):
        load_shards(workers, tmp_path / "three")
    # Nobody's reply is left to be taken for another.
    for worker in workers:
        assert worker.send(torch.ones(2)).tolist() == [1, 1]
    assert len(workers[1].load_shard(tmp_path / "three", verify=False)) == 4


@pytest.mark.parametrize("number", [2, 4])
def test_as_many_shards_as_workers(folder: Path, number: int) -> None:
    with (
        fedmpi.simulate(workers=number) as workers,
        pytest.raises(UsageError, match=f"3 shards in .* but {number} workers: run with"),
    ):
        workers[0].load_shard(folder)


def test_a_folder_without_an_index_is_refused(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no prepared dataset"):
        workers[0].load_shard(tmp_path)


# ---- exec ----


def exec_(*arguments: object) -> None:
    cli.main(["exec", *map(str, arguments)], None, "")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "prints.py"
    path.write_text(PRINTS)
    return path


def lines(folder: Path) -> list[str]:
    index = read_index(folder)
    sums = [sum(i * n for i, n in enumerate(s.label_counts)) for s in index.shards]
    shape = ", ".join(map(str, index.row_shape))
    return [
        f"{k} [{shard.rows}, {shape}] {total}"
        for k, (shard, total) in enumerate(zip(index.shards, sums, strict=True), start=1)
    ]


def test_a_script_finds_the_shards_loaded(
    folder: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec_("--data", folder, script)
    assert capsys.readouterr().out.splitlines() == lines(folder)


def test_as_many_workers_as_shards_unless_told(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(Recipe(source="digits", clients=2), 2, tmp_path / "two")
    exec_(f"--data={tmp_path / 'two'}", script)
    assert capsys.readouterr().out.splitlines() == lines(tmp_path / "two")
    with pytest.raises(UsageError, match=r"2 shards in .* but 3 workers"):
        exec_("--data", tmp_path / "two", "--workers", 3, script)


@pytest.mark.parametrize("order", [("--private", "--data"), ("--data", "--private")])
def test_a_script_may_not_fetch_private_shards(
    folder: Path, script: Path, order: tuple[str, str]
) -> None:
    options = [word for name in order for word in (name, folder)[: 1 + (name == "--data")]]
    with pytest.raises(RemoteError, match=r"prints.py, line 5: worker on rank 1: .*private"):
        exec_(*options, script)


def test_private_without_shards_means_nothing(script: Path) -> None:
    with pytest.raises(UsageError, match="--private without --data"):
        exec_("--private", script)


@pytest.mark.launch
def test_ranks_load_their_shards(folder: Path, script: Path) -> None:
    for launcher in launchers().values():
        done = launcher.run(4, ["-m", "fedmpi", "exec", "--data", folder, script], timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == lines(folder)


@pytest.mark.launch
def test_ranks_that_are_not_as_many_as_shards_are_refused_in_one_sentence(
    folder: Path, script: Path
) -> None:
    command = ["-m", "fedmpi", "exec", "--data", folder, script]
    done = launchers()["mpich"].run(3, command, timeout=120)
    assert done.returncode == UsageError.exit_status
    assert done.stderr.count("fedmpi: rank 0: 3 shards in ") == 1
    assert "but 2 workers: run with mpirun -n 4, or prepare again" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
