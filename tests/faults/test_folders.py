"""Folders that exist or cannot be written, and disks that are full."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.jobs import Ended, half_written, rounds_of, run
from tests.launch import Launcher

RUN = ("run", "--workers=2", "--rounds=2", "--epochs=1", "--name=it")

LEFT = {"config.toml", "metrics.jsonl", "checkpoints", "logs", "outcome.json"}

WITH_A_SMALL_DISK = """
mkdir small && mount -t tmpfs -o size=$SIZE tmpfs small || exit 99
"$@"
status=$?
cp -a small after
exit $status
"""
"""A disk of its own for the job; what is on it afterwards is copied to `after`."""


def on_a_small_disk(launcher: Launcher | None, ranks: int, size: str, *arguments: str) -> Ended:
    before = ["unshare", "-m", "sh", "-c", WITH_A_SMALL_DISK, "sh"]
    return run(launcher, ranks, *arguments, before=before, env={"SIZE": size})


@pytest.fixture(scope="module")
def can_mount() -> None:
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, timeout=60
    )
    if tried.returncode:
        pytest.skip("cannot mount a file system in a namespace of its own")


def test_a_run_that_exists(refused, prepared: Path, here: Path) -> None:
    (here / "runs" / "it").mkdir(parents=True)
    error = str(refused(*RUN, f"--path={prepared}"))
    assert "runs/it exists: choose another --name, or remove it" in error
    assert list((here / "runs" / "it").iterdir()) == []


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("own.py", "own.py: File exists"),
        ("own.py/runs", "Not a directory"),
        ("/proc/runs", "No such file or directory"),
        ("/dev/null/runs", "Not a directory"),
    ],
)
@pytest.mark.parametrize("name", ["it", ""])
def test_a_folder_that_cannot_be(refused, prepared: Path, out: str, words: str, name: str) -> None:
    error = refused(*RUN, f"--path={prepared}", f"--out={out}", f"--name={name}")
    assert "cannot make the run's folder" in str(error)
    assert words in str(error)


@pytest.mark.parametrize("out", ["own.py", "own.py/shards", "/proc/shards"])
def test_shards_cannot_go_there(refused, here: Path, out: str) -> None:
    error = str(refused("prepare", "digits", "--clients=4", "--workers=2", f"--out={out}"))
    assert f"cannot make the folder {out}: " in error


def test_shards_of_a_recipe_without_their_index(refused, here: Path) -> None:
    from fedmpi import cli

    arguments = ("run", "--source=digits", "--clients=4", "--workers=2", "--rounds=1", "--epochs=1")
    cli.main(arguments, None, "")
    index = next((here / "data").rglob("index.json"))
    index.unlink()
    error = str(refused(*arguments))
    assert f"{index.parent.relative_to(here)}: Directory not empty; remove what is there" in error
    assert half_written(here / "data") == []


@pytest.mark.launch
def test_a_read_only_disk(can_mount: None, prepared: Path, here: Path) -> None:
    script = 'mkdir small && mount -t tmpfs -o ro tmpfs small && exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, "sh"]
    done = run(None, 1, *RUN, "--path", prepared, "--out=small", before=before)
    done.told("cannot make the run's folder small/it: Read-only file system")
    assert done.status == 2


@pytest.mark.launch
def test_a_disk_is_full_of_shards(can_mount: None, mpich: Launcher, here: Path) -> None:
    """60 KiB for each of two shards, written by the workers, and 32 KiB of held-out rows."""
    done = on_a_small_disk(
        mpich, 3, "110k", "prepare", "digits", "--clients=4", "--out=small/shards"
    )
    done.told("cannot write small/shards/", "No space left on device")
    assert done.status == 2
    assert list((here / "after" / "shards").iterdir()) == []


@pytest.mark.launch
def test_a_disk_is_full_of_metrics(
    can_mount: None, mpich: Launcher, prepared: Path, here: Path
) -> None:
    arguments = ("--path", prepared, "--rounds=500", "--epochs=1", "--fraction=0.25", "--name=it")
    arguments += ("--model=softmax", "--out=small", "--checkpoint.every-minutes=0")
    done = on_a_small_disk(mpich, 3, "28k", *map(str, arguments))
    done.told("cannot write small/it/metrics.jsonl: No space left on device")
    assert done.status == 1
    after = here / "after" / "it"
    assert {path.name for path in after.iterdir()} <= LEFT
    with pytest.warns(UserWarning, match="is cut off: left out"):
        assert rounds_of(after) > 5


@pytest.mark.launch
def test_a_disk_is_too_small_for_a_model(can_mount: None, prepared: Path, here: Path) -> None:
    done = on_a_small_disk(None, 1, "100k", *RUN, f"--path={prepared}", "--out=small")
    done.told(
        "small needs about", "for the model and 3 checkpoints", "KiB are free: choose another"
    )
    assert done.status == 2
    assert list((here / "after").iterdir()) == []


@pytest.mark.launch
def test_files_that_may_not_grow(prepared: Path, here: Path) -> None:
    """A limit that needs no root; in one process, since MPI's own files would grow beyond it."""
    before = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"]
    done = run(None, 1, *RUN, "--path", prepared, before=before)
    done.told("cannot write runs/it/model.h5: File too large")
    assert {p.name for p in (here / "runs/it").iterdir()} <= LEFT
    assert rounds_of(here / "runs" / "it") == 2
