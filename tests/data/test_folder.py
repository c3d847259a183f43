"""A preparation removes what is FedMPI's, and nothing else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data.files import is_abandoned, remove_abandoned, temporary_name
from fedmpi.data.index import Index, read_index
from fedmpi.errors import DataError, UsageError
from fedmpi.workers import shards
from fedmpi.workers.shards import prepare, prepare_once

Dataset = tuple[Path, Index]


def own_h5(path: Path) -> Recipe:
    """A person's own HDF5 file of 40 rows, and a recipe of it."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["x"] = np.ones((40, 3), np.float32)
        file["y"] = np.arange(40) % 4
    return Recipe(str(path), clients=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


@pytest.mark.parametrize("name", ["test.h5", "shard-0001.h5", "shard-0002.h5", "index.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_a_persons_own_is_in_the_way(tmp_path: Path, name: str, overwrite: bool) -> None:
    recipe = own_h5(tmp_path / "mine" / "train.h5")
    shutil.copy(recipe.source, tmp_path / "mine" / name)
    before = contents(tmp_path / "mine")
    with pytest.raises(UsageError, match=f"mine/{name} is not a file of FedMPI but a dataset"):
        prepare(recipe, 2, tmp_path / "mine", overwrite=overwrite)
    assert contents(tmp_path / "mine") == before


def test_other_files_stay(tmp_path: Path) -> None:
    recipe = own_h5(tmp_path / "mine" / "train.h5")
    shutil.copy(recipe.source, tmp_path / "mine" / "shard-0003.h5")
    before = contents(tmp_path / "mine")
    prepare(recipe, 2, tmp_path / "mine")
    prepare(recipe, 1, tmp_path / "mine", overwrite=True)
    found = contents(tmp_path / "mine")
    assert sorted(found.keys() - before.keys()) == ["index.json", "shard-0001.h5", "test.h5"]
    assert {name: found[name] for name in before} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_is_never_removed(prepared: Dataset, tmp_path: Path, overwrite: bool) -> None:
    """Not even a shard of FedMPI's own, reached by another path."""
    folder, _ = prepared
    for recipe in (own_h5(tmp_path / "own" / "test.h5"), Recipe(str(folder / "shard-0003.h5"))):
        home = Path(recipe.source).parent
        before = contents(home)
        roundabout = Recipe(str(home / ".." / home.name / Path(recipe.source).name), clients=4)
        with pytest.raises(UsageError, match=r"has the name of a file of the dataset: choose"):
            prepare(roundabout, 2, home, overwrite=overwrite)
        assert contents(home) == before


def test_shards_without_an_index_are_replaced_on_request(
    prepared: Dataset, numbered: Recipe
) -> None:
    folder, _ = prepared
    (folder / "index.json").unlink()
    with pytest.raises(UsageError, match=r"shard-0001.h5 is left from a preparation that did not"):
        prepare(numbered, 2, folder)
    assert len(contents(folder)) == 4
    prepare(numbered, 2, folder, overwrite=True)
    assert sorted(contents(folder)) == ["index.json", "shard-0001.h5", "shard-0002.h5", "test.h5"]


def test_damaged_files_of_a_dataset_are_replaced_on_request(
    prepared: Dataset, numbered: Recipe
) -> None:
    folder, index = prepared
    (folder / "shard-0002.h5").write_bytes(b"damaged")
    assert prepare(numbered, 3, folder, overwrite=True) == index
    (folder / "index.json").write_bytes((folder / "index.json").read_bytes()[:-50])
    assert prepare(numbered, 3, folder, overwrite=True) == index == read_index(folder)


def test_a_failure_removes_what_it_wrote(
    numbered: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("notes.txt", "shard-0009.h5", "labels.png"):
        (folder / name).write_text("mine")
    before = contents(folder)
    monkeypatch.setattr(shards, "write_test", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(numbered, 3, folder)
    assert contents(folder) == before


def test_temporaries_of_dead_processes_go(numbered: Recipe, tmp_path: Path) -> None:
    folder, here, dead = tmp_path / "dataset", socket.gethostname(), dead_process()
    folder.mkdir()
    gone = [f".shard-0001.h5.tmp-0a-{here}-{dead}", f".index.json.tmp-0a-{here}-{dead}"]
    kept = [
        f".shard-0001.h5.tmp-0a-{here}-{os.getpid()}",
        f".shard-0002.h5.tmp-0a-not-{here}-{dead}",
        f".notes.txt.tmp-0a-{here}-{dead}",
    ]
    for name in (*gone, *kept):
        (folder / name).write_bytes(b"half")
    (folder / kept[0]).rename(folder / ".test.h5.tmp-0a-another-host-1")
    prepare(numbered, 1, folder)
    left = {".test.h5.tmp-0a-another-host-1", *kept[1:]}
    assert set(contents(folder)) == {"index.json", "shard-0001.h5", "test.h5", *left}
    prepare(numbered, 1, folder, overwrite=True)
    assert set(contents(folder)) == {"index.json", "shard-0001.h5", "test.h5", kept[2]}


def test_who_is_dead() -> None:
    here, dead = socket.gethostname(), dead_process()
    assert is_abandoned(Path(f".a.tmp-0a-{here}-{dead}"))
    assert not is_abandoned(temporary_name(Path("a")))
    for name in (f"{here}-{os.getpid()}", f"{here}-1", f"x-{dead}", f"{dead}", f"{here}-", here):
        assert not is_abandoned(Path(f".a.tmp-0a-{name}"))
    assert not is_abandoned(Path(f".a.tmp-0a-{here}-{2**80}"))


def test_folders_of_dead_preparations_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(source="digits", clients=4)
    folder, _ = prepare_once(recipe, 1, None)
    shutil.rmtree(folder)
    here, dead = socket.gethostname(), dead_process()
    gone = folder.with_name(f".{folder.name}.tmp-0a-{here}-{dead}")
    kept = [
        folder.with_name(f".{folder.name}.tmp-0a-elsewhere-{dead}"),
        folder.with_name(f".{folder.name}.tmp-0a-{here}-{os.getppid()}"),
        folder.with_name(f".other.tmp-0a-{here}-{dead}"),
    ]
    for other in (gone, *kept):
        other.mkdir()
        (other / "shard-0001.h5").write_bytes(b"whole")
    prepare_once(recipe, 1, None)
    assert set(folder.parent.iterdir()) == {folder, *kept}


def test_a_folder_that_cannot_be_cleared(numbered: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the folder .*file: File exists"):
        prepare(numbered, 2, tmp_path / "file")


def test_what_a_dead_process_has_left_is_removed(tmp_path: Path) -> None:
    here = socket.gethostname()
    dead = 2**22 + 1  # beyond the largest process id
    left, mine = f".outcome.json.tmp-0a-{here}-{dead}", f".outcome.json.tmp-0a-{here}-{os.getpid()}"
    elsewhere = ".outcome.json.tmp-0a-another-host-1"
    for name in (left, mine, elsewhere, "outcome.json"):
        (tmp_path / name).write_text("")
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine, elsewhere, "outcome.json"}
