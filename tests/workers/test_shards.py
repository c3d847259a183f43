"""Shards that workers write at the same time are those that one process writes."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import pytest

from fedmpi.config import Recipe
from fedmpi.data.index import read_index
from fedmpi.errors import FedMPIError, RemoteError, UsageError
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare, prepare_once
from tests.comm.worlds import World
from tests.workers.crews import Double, Value

RECIPE = Recipe(source="digits", clients=11, partition="dirichlet", partition_seed=3)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("shards", [1, 5])
def test_the_same_bytes_as_from_one_process(world: World, folder: Path, shards: int) -> None:
    """More shards than workers, fewer, and as many."""
    for_each_worker = world.size - 1 if shards == 1 else shards

    def scenario(crew: Crew) -> None:
        index = prepare(RECIPE, for_each_worker, folder / "together", crew)
        assert index == read_index(folder / "together")
        assert index == prepare(RECIPE, for_each_worker, folder / "alone")
        assert digests(folder / "together") == digests(folder / "alone")

    world.lead(scenario)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_without_and_with_in_process_workers(tmp_path: Path, workers: int) -> None:
    alone = prepare(RECIPE, 3, tmp_path / "alone", None)
    with in_process_crew(workers) as crew:
        assert prepare(RECIPE, 3, tmp_path / "together", crew) == alone
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_a_recipe_that_cannot_be_leaves_workers_and_folder_alone(tmp_path: Path) -> None:
    with in_process_crew(2) as crew:
        with pytest.raises(UsageError):
            prepare(Recipe(source="digits", clients=3), 4, tmp_path / "new", crew)
        with pytest.raises(UsageError, match="nosuch"):
            prepare(Recipe(source="nosuch"), 2, tmp_path / "new", crew)
        assert not crew.busy
        assert not (tmp_path / "new").exists()


def test_a_dataset_is_replaced_only_on_request(tmp_path: Path) -> None:
    with in_process_crew(2) as crew:
        prepare(RECIPE, 3, tmp_path / "d", crew)
        before = digests(tmp_path / "d")
        with pytest.raises(UsageError, match="holds a prepared dataset"):
            prepare(RECIPE, 2, tmp_path / "d", crew)
        assert digests(tmp_path / "d") == before
        prepare(RECIPE, 2, tmp_path / "d", crew, overwrite=True)
        assert len(read_index(tmp_path / "d").shards) == 2


def test_a_worker_that_cannot_write_is_told_by_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmpi.errors import DataError
    from fedmpi.workers import shards

    def refuse(plan, folder, which, between):
        raise DataError(f"no space for {which}")

    monkeypatch.setattr(shards, "write_shards", refuse)
    with in_process_crew(2) as crew:
        with pytest.raises(RemoteError, match=r"worker on rank 1: no space for \[0, 2\]") as caught:
            prepare(RECIPE, 3, tmp_path / "d", crew)
        assert caught.value.exit_status == 2
        assert not (tmp_path / "d" / "index.json").exists()
        assert crew.ask(lambda rank: Double(rank), Value) == [Value(2.0), Value(4.0)]


def test_prepare_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with in_process_crew(2) as crew:
        folder, index = prepare_once(RECIPE, 2, crew)
        before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
        assert prepare_once(RECIPE, 2, None) == (folder, index)
        assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
        other, _ = prepare_once(RECIPE, 3, crew)
        assert other != folder
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted({folder.name, other.name})


def test_prepare_once_leaves_nothing_behind_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedmpi.workers.shards.write_test", lambda *args: 1 / 0)
    with pytest.raises((ZeroDivisionError, FedMPIError)):
        prepare_once(RECIPE, 2, None)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_download_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Downloads:
        class datasets:
            @staticmethod
            def MNIST(root: str, download: bool) -> None:
                for part in ("train", "t10k"):
                    for kind, shape in (("images-idx3", (40, 2, 2)), ("labels-idx1", (40,))):
                        head = struct.pack(f">{len(shape) + 1}I", 2048 + len(shape), *shape)
                        path = Path(root) / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(head + bytes(math.prod(shape)))

    module = "fedmpi.data.sources_torchvision"
    monkeypatch.setattr(f"{module}.import_torchvision", lambda: Downloads)
    recipe = Recipe("mnist", clients=2, download=True)
    folder, _ = prepare_once(recipe, 1, None)
    assert prepare_once(recipe, 1, None)[0] == folder
    assert [*folder.parent.iterdir()] == [folder]
