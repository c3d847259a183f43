"""Recorded steps on disk: the programs that recording would give, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x91\x05"])
def test_a_damaged_file_is_made_anew(folder: Path, content: bytes) -> None:
    record = Recorder("2nn")
    expected = record.kept()
    [file] = folder.iterdir()
    file.write_bytes(content)
    assert record.kept() == expected
    assert record.asked == 2
    assert record.kept() == expected
    assert record.asked == 2


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
