"""Recorded steps on disk: the programs that recording would give, or none."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from fedmpi import models
from fedmpi.federated import kept_programs as module
from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.kept_programs import kept_programs
from fedmpi.federated.record_training import record_training
from fedmpi.workers.program import Program
from tests.launch import ROOT

SHAPE = (1, 8, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def rank_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(module.LOG, "warning", lambda text, *args: said.append(text % args))
    return said


class Recorder:
    """Counts how often it is asked."""

    def __init__(self, name: str, descent: Descent = PLAIN) -> None:
        self.name, self.descent, self.asked = name, descent, 0

    def __call__(self) -> list[Program]:
        self.asked += 1
        model, loss_of = models.build(self.name, SHAPE, 10), models.task_loss(10)
        return record_training(model, loss_of, SHAPE, 10, self.descent)

    def kept(self) -> list[Program]:
        return kept_programs(self.name, (SHAPE, 10, self.descent), self)


@pytest.mark.parametrize("name", ["softmax", "2nn", "cnn", "resnet18"])
def test_a_file_gives_what_was_recorded(folder: Path, name: str) -> None:
    record = Recorder(name)
    first = record.kept()
    assert record.kept() == first
    assert record.asked == 1
    assert first == Recorder(name)()
    assert bool(first) == (name != "resnet18")  # whose buffers are not recorded


def test_whatever_it_depends_on_names_another_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, descent in (("2nn", PLAIN), ("softmax", PLAIN), ("2nn", Descent(momentum=0.5))):
        record = Recorder(name, descent)
        record.kept()
        assert record.asked == 1
    monkeypatch.setattr(module, "_digest_of_code", lambda: "other code")
    record = Recorder("2nn")
    record.kept()
    assert record.asked == 1
    assert len(list(folder.iterdir())) == 4


def test_models_of_ones_own_are_recorded_every_time(folder: Path) -> None:
    record = Recorder("2nn")
    for _ in range(2):
        kept_programs("package.module:factory", (SHAPE, 10, PLAIN), record)
    assert record.asked == 2
    assert not folder.exists()


def damages(good: bytes) -> Iterator[bytes]:
    """What may become of a file: cut, grown, emptied, of text, and with any bit flipped."""
    yield from (b"", b"\xff", b"\x91\x05", bytes(len(good)), good + b"\0", good[32:])
    yield from (good[:length] for length in (1, 31, 32, 33, len(good) // 2, len(good) - 1))
    # Decodable, but not what was recorded; and a text that is none.
    yield good[:32] + msgspec.msgpack.encode([])
    yield b"\x91\xa2\xff\xfe"
    draw = random.Random(1)
    for _ in range(300):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)


def test_a_damaged_file_is_made_anew(folder: Path) -> None:
    record = Recorder("2nn")
    expected = record.kept()
    [file] = folder.iterdir()
    good = file.read_bytes()
    for tried, content in enumerate(damages(good)):
        file.write_bytes(content)
        assert kept_programs("2nn", (SHAPE, 10, PLAIN), lambda: expected) is expected, tried
        assert file.read_bytes() == good
    assert record.kept() == expected
    assert record.asked == 1


def test_what_decodes_to_something_else_is_no_program(folder: Path) -> None:
    """The digest is right, the content is not a list of programs."""
    record = Recorder("2nn")
    expected = record.kept()
    [file] = folder.iterdir()
    for content in (b"", b"\x91\x05", b"\x91\xa2\xff\xfe", b"\x91" * 100_000):
        digest = hashlib.sha256(file.name.encode() + content).digest()
        file.write_bytes(digest + content)
        assert kept_programs("2nn", (SHAPE, 10, PLAIN), lambda: expected) is expected


def test_a_file_under_another_name_is_made_anew(folder: Path) -> None:
    softmax, perceptrons = Recorder("softmax"), Recorder("2nn")
    expected = perceptrons.kept()
    [file] = folder.iterdir()
    softmax.kept()
    [other] = set(folder.iterdir()) - {file}
    file.write_bytes(other.read_bytes())
    assert perceptrons.kept() == expected
    assert perceptrons.asked == 2


def test_nobody_else_may_read_or_write_them(folder: Path) -> None:
    umask = os.umask(0)
    try:
        Recorder("softmax").kept()
    finally:
        os.umask(umask)
    [file] = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_what_others_may_write_is_not_read(
    folder: Path, which: str, mode: int, rank_log: list[str]
) -> None:
    record = Recorder("softmax")
    expected = record.kept()
    [file] = folder.iterdir()
    wrong = {"folder": folder, "file": file}[which]
    wrong.chmod(mode)
    assert record.kept() == expected
    assert record.asked == 2
    assert f"{wrong} belongs to user {os.geteuid()} with mode {mode:o}: expected" in rank_log[0]
    record.kept()
    # A file is written anew, closed to others; in such a folder nothing is kept.
    assert record.asked == (2 if which == "file" else 3)


@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_somebody_else_has_written_is_not_read(
    folder: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recorder("softmax")
    expected = record.kept()
    [file] = folder.iterdir()
    try:
        os.chown({"folder": folder, "file": file}[which], 12345, -1)
    except PermissionError:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert record.kept() == expected
    assert record.asked == 2


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    record = Recorder("softmax")
    expected = record.kept()
    [file] = folder.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert record.kept() == expected
    assert record.asked == 2
    assert not file.is_symlink()


def test_several_write_at_once(folder: Path) -> None:
    expected = Recorder("softmax")()
    with ThreadPoolExecutor(8) as pool:
        found = [
            pool.submit(kept_programs, "softmax", (SHAPE, 10, PLAIN), lambda: expected)
            for _ in range(64)
        ]
        assert all(one.result() == expected for one in found)
    record = Recorder("softmax")
    assert record.kept() == expected
    assert record.asked == 0
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path / "file" / "kept"))
    record = Recorder("2nn")
    assert record.kept() == record.kept()
    assert record.asked == 2


def test_nothing_is_kept_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPI_CACHE", "")
    record = Recorder("2nn")
    record.kept()
    record.kept()
    assert record.asked == 2


def test_a_job_does_without_pytorchs_compiler(tmp_path: Path) -> None:
    """Once a step is on disk neither owner nor workers import it."""
    job = ["run", "--source=digits", "--rounds=1", "--epochs=1", "--workers=2", "--name"]
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['fedmpi', *{job!r}, sys.argv[1]]\n"
        "try:\n    runpy.run_module('fedmpi', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch._dynamo', 'sympy', 'torch.distributed.tensor'} & sys.modules.keys()))"
    )
    env = os.environ | {"FEDMPI_CACHE": str(tmp_path / "kept"), "PYTHONPATH": str(ROOT)}
    said = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", script, name]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert "dynamo" in said[0]
    assert said[1] == "[]"
