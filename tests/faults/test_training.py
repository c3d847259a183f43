"""Workers that raise in the middle of a round, and clients whose updates cannot be used."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import numpy as np
import pytest

from fedmpi import cli
from fedmpi.errors import FedMPIError
from fedmpi.study.metrics_file import read_metrics
from tests.faults.jobs import half_written, rounds_of, run
from tests.launch import Launcher, launchers

SPOILED = 2
"""The client whose rows are far out of scale."""


@pytest.fixture
def diverging(here: Path) -> list[str]:
    """A run on rows of four clients, of which one has features of 1e30."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    who = np.arange(80) % 4
    x_test, y_test = x[:20].copy(), y[:20]
    x[who == SPOILED] *= 1e30
    np.savez(here / "own.npz", x=x, y=y, who=who, x_test=x_test, y_test=y_test)
    return ["--source=own.npz", "--partition=natural", "--by=who", "--normalise=none",
            "--fraction=1", "--rounds=3", "--epochs=2", "--name=it"]  # fmt: skip


@pytest.mark.launch
@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "shards") for name in sorted(launchers())), ("", "shards"), ("", "cyclic")],
)
def test_a_worker_that_raises(prepared: Path, here: Path, name: str, mode: str) -> None:
    """Without a launcher too, and while the next worker waits for the model of this one."""
    arguments = ["--path", prepared, "--rounds=1000", "--epochs=1", "--fraction=1", "--name=it"]
    arguments += ["--batch-size=100", "--model=own:raises", f"--mode={mode}"]
    arguments += [] if name else ["--workers=2"]
    done = run(launchers().get(name), 3, *arguments)
    # After an Abort, MPICH may give the status of a rank that it killed.
    assert done.status != 0, done
    sentence = "fedmpi: rank 0: worker on rank 2: RuntimeError: the tenth step went wrong"
    told = [line for line in done.stderr.splitlines() if line.startswith(sentence)]
    assert len(told) == 1, done.stderr
    assert re.search(rf"\({re.escape(socket.gethostname())}, round \d, client \d\)$", told[0])
    log = here / "runs" / "it" / "logs" / f"rank-{2 if name else 0}.log"
    assert log.read_text().count("RuntimeError: the tenth step went wrong") == (2 if name else 3)
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert done.stderr.count("own.py") == 1, done.stderr
    assert rounds_of(here / "runs" / "it") in (0, 1)
    assert half_written(here) == []


@pytest.mark.parametrize("mode", ["shards", "scatter", "cyclic"])
@pytest.mark.parametrize("model", ["2nn", "softmax"])
def test_a_spoiled_client_is_left_out(
    diverging: list[str], here: Path, capsys: pytest.CaptureFixture[str], mode: str, model: str
) -> None:
    cli.main(["run", *diverging, "--workers=2", f"--mode={mode}", f"--model={model}"], None, "")
    rounds = read_metrics(here / "runs" / "it" / "metrics.jsonl")
    assert [[e.client for e in r.excluded] for r in rounds] == [[SPOILED]] * 3
    assert {r.clients for r in rounds} == {3}
    assert {r.examples for r in rounds} == {60}
    assert all(np.isfinite([r.train_loss, r.test_loss]).all() for r in rounds)
    reason = rounds[0].excluded[0].reason
    shown = f"left out: client {SPOILED} on rank {rounds[0].excluded[0].rank} ({reason})"
    assert capsys.readouterr().out.count(shown) == 3
    assert (here / "runs" / "it" / "model.h5").exists()


def test_a_spoiled_client_stops_the_job(refused, diverging: list[str], here: Path) -> None:
    error = refused("run", *diverging, "--workers=2", "--on-bad-update=stop")
    assert str(error).startswith(f"round 1: client {SPOILED} on rank ")
    assert "on_bad_update = 'stop': lower the learning rate" in str(error)
    assert rounds_of(here / "runs" / "it") == 0
    assert half_written(here) == []


@pytest.mark.parametrize("mode", ["shards", "cyclic"])
def test_no_client_is_left(prepared: Path, here: Path, mode: str) -> None:
    arguments = [f"--path={prepared}", "--workers=2", "--rounds=5", "--name=it", f"--mode={mode}"]
    with pytest.raises(FedMPIError, match=r"no client's update is left: lower .* \(1e\+06\)") as e:
        cli.main(["run", *arguments, "--lr=1e6"], None, "")
    assert e.value.exit_status == 1
    assert half_written(here) == []


@pytest.mark.launch
def test_a_spoiled_client_under_mpirun(mpich: Launcher, diverging: list[str], here: Path) -> None:
    done = run(mpich, 3, *diverging)
    assert (done.status, "Traceback" in done.stderr) == (0, False), done
    assert done.stdout.count(f"left out: client {SPOILED} on rank ") == 3
    rounds = read_metrics(here / "runs" / "it" / "metrics.jsonl")
    assert [[e.client for e in r.excluded] for r in rounds] == [[SPOILED]] * 3


@pytest.mark.launch
def test_a_spoiled_client_stops_mpirun(mpich: Launcher, diverging: list[str], here: Path) -> None:
    done = run(mpich, 3, *diverging, "--on-bad-update=stop")
    done.told(f"round 1: client {SPOILED} on rank ", "on_bad_update = 'stop'")
    assert done.status == 1
    assert half_written(here) == []
