"""`fedmpi bench owner`: its table and files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpi import cli
from fedmpi.errors import UsageError
from fedmpi.study.bench_owner import config_of, replay
from tests.launch import run_single


@pytest.mark.launch
def test_a_replay_leaves_a_table_and_files(tmp_path: Path) -> None:
    arguments = ["-m", "fedmpi", "bench", "owner", "--workers", "3", "--model", "softmax"]
    more = ["--ways", "shares", "--rounds", "1", "--clients-per-worker", "2"]
    done = run_single([*arguments, *more, "--out", "new"], timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the owner's part of a round" in done.stdout
    record = json.loads((tmp_path / "new" / "owner-softmax.json").read_text())
    assert [(p["way"], p["workers"]) for p in record["points"]] == [("shares", 3)]
    assert all(p["clients"] == 3 and p["send"] > 0 and p["gather"] > 0 for p in record["points"])
    assert (tmp_path / "new" / "owner-softmax.png").read_bytes().startswith(b"\x89PNG")


def test_messages_grow_with_the_workers_and_the_model_does_not() -> None:
    few, many = (replay(config_of("tree", w, 2, "softmax", 1.0, 2), w, 2) for w in (4, 32))
    # Four commands for each worker, and a chunk for each child of the root.
    assert (few.messages_sent, many.messages_sent) == (4 * 4 + 3, 4 * 32 + 6)
    assert (few.clients, many.clients) == (8, 64)


def test_the_peak_of_memory_can_be_forgotten() -> None:
    """In a process of its own: what tests before it have left is not in the way."""
    script = """
from fedmpi.study.memory import forget_peak, peak_bytes, resident_bytes
block = bytearray(64 * 2**20)
block[::4096] = b"x" * len(block[::4096])
assert peak_bytes() >= resident_bytes() > len(block)
del block
before = peak_bytes()
forget_peak()
assert peak_bytes() < before
"""
    done = run_single(["-c", script], timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "0"], r"workers = \[0\]: expected one number or more of 1 to 65,536"),
        (["--rounds", "0"], "rounds = 0: expected 1 to 1000 rounds"),
        (["--clients-per-worker", "0"], "clients_per_worker = 0: expected 1 or more"),
        (["--fraction", "2"], "fraction = 2.0: expected a share"),
    ],
)
def test_a_bad_value_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        cli.main(["bench", "owner", *arguments], None, "")


def test_an_unknown_bench_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"bench 'owners' .did you mean 'owner'.*: expected one of"
    ):
        cli.main(["bench", "owners"], None, "")
