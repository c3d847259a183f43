"""Encrypted jobs as a person starts them: what they leave behind, mpirun, a dead party."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpi import cli
from fedmpi.config import from_toml
from fedmpi.federated.model_file import load_model
from tests.faults.jobs import started
from tests.launch import ROOT, launchers

JOBS = sorted((ROOT / "jobs").glob("encrypted-*.toml"))
SMALL = """
model = "softmax"
[data]
source = "digits"
clients = 3
test_fraction = 0.5
[federated]
mode = "encrypted"
rounds = 2
epochs = 1
batch_size = 128
lr = 0.5
[secure]
loss = "mse"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "job.toml").write_text(SMALL)
    return folder


def rounds_in(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_jobs_to_copy_can_be_read(path: Path) -> None:
    assert from_toml(path).federated.mode == "encrypted"
    assert len(JOBS) == 4


def test_a_run_and_its_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "--config", "job.toml", "--workers", "2", "--name", "it"], None, "")
    run = here / "runs" / "it"
    names = {"config.toml", "curve.png", "metrics.jsonl", "model.h5", "outcome.json"}
    assert {p.name for p in run.iterdir()} == names
    assert set(load_model(run / "model.h5")) == {"1.weight", "1.bias"}
    assert from_toml(run / "config.toml").comm.workers == 2
    capsys.readouterr()
    cli.main(["report", str(run)], None, "")
    printed = capsys.readouterr().out
    assert "Secure computation" in printed
    lines = [line.split() for line in printed.splitlines()]
    [scaled] = [words for words in lines if words[:1] == ["scaled_product"]]
    assert scaled[1] == scaled[2], "one opening a call"


def test_a_model_that_the_owner_does_not_learn(here: Path) -> None:
    options = ["--workers", "2", "--name", "it", "--learns", "metric"]
    cli.main(["run", "--config", "job.toml", *options], None, "")
    run = here / "runs" / "it"
    names = {"config.toml", "curve.png", "metrics.jsonl", "outcome.json"}
    assert {p.name for p in run.iterdir()} == names
    cli.main(["report", str(run)], None, "")
    assert [m["train_loss"] for m in rounds_in(run)] == [None, None]


@pytest.mark.launch
@pytest.mark.parametrize("name", sorted(launchers()))
def test_ranks_and_threads_train_the_same_model(name: str, here: Path) -> None:
    cli.main(["run", "--config", "job.toml", "--workers", "3", "--name", "threads"], None, "")
    arguments = ["-m", "fedmpi", "run", "--config", "job.toml", "--name", "ranks"]
    done = launchers()[name].run(4, arguments, timeout=240, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "round 2/2  accuracy" in done.stdout
    threads, ranks = (rounds_in(here / "runs" / name) for name in ("threads", "ranks"))
    for one, other in zip(threads, ranks, strict=True):
        assert one["test_metric"] == pytest.approx(other["test_metric"], abs=0.01)
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=0.001)
        assert one["traffic"] == other["traffic"]


@pytest.mark.launch
@pytest.mark.parametrize("rank", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_party(rank: int, here: Path) -> None:
    """The others, who wait for its shares, stop; and a person is told where the rounds are."""
    options = ["--config", "job.toml", "--rounds", "100000", "--name", "it"]
    with started(launchers()["mpich"], 3, "run", *options) as job:
        job.wait_for_round(here / "runs" / "it")
        job.rank(rank).kill()
        done = job.end()
    assert done.status != 0
    assert "Traceback" not in done.stderr
    assert "rank 0 was ended from outside, or because another rank was lost" in done.stderr
    assert "are in runs/it/metrics.jsonl" in done.stderr
    assert not (here / "runs" / "it" / "model.h5").exists()


@pytest.mark.launch
def test_one_worker_is_refused_under_mpirun(here: Path) -> None:
    arguments = ["-m", "fedmpi", "run", "--config", "job.toml"]
    done = launchers()["mpich"].run(2, arguments, timeout=120, cwd=here)
    assert done.returncode == 2
    told = (
        "fedmpi: rank 0: mode = 'encrypted' with 1 worker: what is shared needs at least 2 parties"
    )
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "runs").exists()
