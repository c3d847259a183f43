"""Shards, held-out rows and index: missing, truncated, damaged, foreign, mixed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedmpi import cli
from tests.faults.jobs import half_written, run
from tests.launch import Launcher

RUN = ("run", "--workers=2", "--rounds=1", "--epochs=1", "--name=it")


def sign_again(shards: Path) -> None:
    """Brings the hashes in the index in line with files that were tampered with."""
    index = json.loads((shards / "index.json").read_text())
    for member in (*index["shards"], index["test"]):
        file = shards / member["file"]
        member["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (shards / "index.json").write_text(json.dumps(index))


def flip_a_bit(file: Path, place: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def make_foreign(file: Path) -> None:
    with h5py.File(file, "w") as other:
        other["x"] = np.zeros(3)


def make_text(file: Path) -> None:
    file.write_text("rows and labels\n")


def make_empty(file: Path) -> None:
    file.write_bytes(b"")


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", ["shard-0002.h5", "test.h5"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "No such file"),
        (truncate, "is (truncated|damaged)"),
        (flip_a_bit, r"is damaged.*: expected SHA-256 '\w{12}', found '\w{12}'"),
        (lambda file: flip_a_bit(file, 0), "is (not an HDF5 file|damaged)"),
        (make_foreign, "expected the format 'fedmpi-(shard|test)', found None|is damaged"),
        (make_text, "is (not an HDF5 file|damaged)"),
        (make_empty, "is (not an HDF5 file|truncated|damaged)"),
        (make_folder, "Is a directory"),
    ],
)
def test_a_damaged_file(
    refused, shards: Path, here: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(shards / name)
    error = str(refused(*RUN, f"--path={shards}"))
    assert str(shards / name) in error
    assert re.search(words, error)
    assert ("worker on rank 2" in error) == (name == "shard-0002.h5")
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", None, "has no index.json, so it is no prepared dataset"),
        ('"shards"', '"shard"', "is damaged"),
        ('"version": 1', '"version": 2', "expected version 1 or older, found version 2"),
        ("fedmpi-index", "other-index", "expected the format 'fedmpi-index', found 'other-index'"),
        ("{", "", "is damaged"),
        ("shard-0002.h5", "../shard-0002.h5", "is not a file's name in its folder"),
        ("shard-0002.h5", "shard-0001.h5", "expected shard = 2, found 1"),
        ('"classes": 10', '"classes": 9', "expected a label from 0 to 8"),
        ("uint8", "int16", "expected uint8 or float32"),
    ],
)
def test_a_damaged_index(refused, shards: Path, old: str, new: str | None, words: str) -> None:
    index = shards / "index.json"
    text = index.read_text()
    assert old in text
    index.unlink()
    if new is not None:
        index.write_text(text.replace(old, new, 1))
    assert re.search(words, str(refused(*RUN, f"--path={shards}", "--no-verify")))


def test_shards_of_two_datasets(refused, shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    arguments = ["digits", "--clients=4", "--workers=2", "--partition-seed=1", f"--out={other}"]
    cli.main(["prepare", *arguments], None, "")
    (other / "shard-0002.h5").replace(shards / "shard-0002.h5")
    for verify, words in (
        ("--verify", "shard-0002.h5 is damaged, or from another preparation"),
        ("--no-verify", "shard-0002.h5 belongs to another dataset"),
    ):
        error = str(refused(*RUN, f"--path={shards}", verify))
        assert "worker on rank 2" in error
        assert re.search(rf"{words}: expected \S* ?'\w{{12}}', found '\w{{12}}'", error)


def test_shards_in_the_wrong_order(refused, shards: Path) -> None:
    first, second = shards / "shard-0001.h5", shards / "shard-0002.h5"
    aside = first.rename(shards / "aside")
    second.rename(first)
    aside.rename(second)
    error = str(refused(*RUN, f"--path={shards}", "--no-verify"))
    assert "worker on rank 1" in error
    assert "expected shard = 1, found 2" in error


@pytest.mark.parametrize("name", ["shard-0002.h5", "test.h5"])
@pytest.mark.parametrize("label", [10, -1])
def test_a_label_outside_the_classes(refused, shards: Path, name: str, label: int) -> None:
    with h5py.File(shards / name, "r+") as file:
        file["y"][5] = label
    sign_again(shards)
    error = str(refused(*RUN, f"--path={shards}"))
    assert f"{shards / name}: /y[5] is {label}: expected a label from 0 to 9" in error


def test_nan_in_a_shard(refused, here: Path, tmp_path: Path) -> None:
    """A shard that is consistent with its index, but not with what was prepared."""
    shards = tmp_path / "table"
    arguments = ["breast_cancer", "--clients=4", "--workers=2", f"--out={shards}"]
    cli.main(["prepare", *arguments], None, "")
    with h5py.File(shards / "shard-0002.h5", "r+") as file:
        file["x"][-1, 3] = np.nan
        client = file["client/id"][-1]
    sign_again(shards)
    error = str(refused(*RUN, "--fraction=1", f"--path={shards}"))
    assert f"{shards / 'shard-0002.h5'}: client {client} has NaN or infinity in x" in error
    assert "worker on rank 2" in error
    assert half_written(here) == []


@pytest.mark.launch
def test_a_damaged_file_under_mpirun(launcher: Launcher, shards: Path, here: Path) -> None:
    truncate(shards / "shard-0002.h5")
    done = run(launcher, 3, "--path", shards, "--out=runs")
    done.told("worker on rank 2", "shard-0002.h5 is damaged")
    assert done.status == 2
    assert not (here / "runs").exists()
