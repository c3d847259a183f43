"""The tutorials run as their readers run them, print the same everywhere, and learn."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmpi import cli
from fedmpi.config import Recipe
from fedmpi.federated.model_file import load_model
from fedmpi.tensors.session import simulate
from fedmpi.tensors.shards import load_shards
from fedmpi.workers.operate import Done, Threads
from fedmpi.workers.shards import prepare
from tests.launch import ROOT, launchers, run_single

TUTORIALS = ROOT / "docs" / "tutorials"
QUICK = ("03_averaging", "06_encrypted_inference")
"""Of those that are run under mpirun; the others are left to `-m long`."""
ONE_ULP = 2.0**-25
"""Spacing of float32 between 0.25 and 0.5, where the largest parameters are.

The run adds updates up in 64-bit fixed point, the tutorial in float64: before both round to
float32, the sums differ by at most 2^-40, so that a few parameters go to the next float. In
one round that is all. In the next ones training carries it on; a ReLU may then take the
other side for one row, which changes a parameter by as much as 1e-4, and so only the model
without one is compared after five.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One client for each of 3 workers."""
    path = tmp_path_factory.mktemp("tutorials") / "mnist5k-3"
    prepare(Recipe(source="mnist5k", clients=3), 3, path)
    return path


OWN_STRATEGY = "08_own_strategy"
WITHOUT_DATA = ("01_pointers", OWN_STRATEGY)


def command(name: str, folder: Path) -> list[str]:
    data = [] if name in WITHOUT_DATA else ["--data", str(folder)]
    return ["exec", *data, str(TUTORIALS / f"{name}.py")]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[str], str]:
    """What a tutorial prints in one process."""

    @functools.cache
    def printed(name: str) -> str:
        # A job leaves its run in the current folder.
        with contextlib.chdir(folder.parent), contextlib.redirect_stdout(io.StringIO()) as out:
            cli.main(command(name, folder), None, "")
        return out.getvalue()

    return printed


def test_pointers_fit_a_line(alone: Callable[[str], str]) -> None:
    printed = alone("01_pointers")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[0] > 1
    assert losses == sorted(losses, reverse=True)
    assert printed.endswith("y = 3.00 x + 2.00\n")


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("02_moving_model", 0.8),
        ("03_averaging", 0.7),
        ("04_search", 0.7),
        ("05_accepted_plans", 0.7),
    ],
)
def test_a_tutorial_learns(name: str, at_least: float, alone: Callable[[str], str]) -> None:
    accuracies = [float(a) / 100 for a in re.findall(r"accuracy ([\d.]+)%", alone(name))]
    assert accuracies[0] < 0.2
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > at_least


def test_a_strategy_of_ones_own_beats_the_mean(alone: Callable[[str], str]) -> None:
    after = re.findall(r"after 5 rounds ([\d.]+)%, after 15 rounds ([\d.]+)%", alone(OWN_STRATEGY))
    plain, nesterov = ([float(accuracy) for accuracy in row] for row in after)
    assert nesterov[0] > plain[0] > 40
    assert nesterov[1] > plain[1] > 75


def test_a_search_finds_rows_and_meets_refusals(alone: Callable[[str], str]) -> None:
    printed = alone("04_search")
    assert "#x found on 3 workers, 4000 rows" in printed
    assert "#note: [0, 1, 0]" in printed
    assert printed.count("refused") == 3


def test_of_private_rows_only_what_was_accepted_comes_out(alone: Callable[[str], str]) -> None:
    printed = alone("05_accepted_plans")
    assert printed.count("refused") == 4
    assert "fetched" not in printed
    assert "def gradients(input0, input1, input2, input3):" in printed
    assert "t1 = select.int(input0, 0, 0)" in printed


@pytest.mark.launch
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long])
        for name in (path.stem for path in sorted(TUTORIALS.glob("*.py")))
    ],
)
def test_a_tutorial_prints_the_same_under_mpirun(
    name: str, folder: Path, alone: Callable[[str], str]
) -> None:
    # One lesson under every MPI there is, the others under MPICH: a launch takes seconds.
    every = launchers()
    for launcher in every.values() if name == "01_pointers" else [every["mpich"]]:
        words = ["-m", "fedmpi", *command(name, folder)]
        done = launcher.run(4, words, timeout=120, cwd=folder.parent)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout == alone(name)


@pytest.mark.launch
def test_a_tutorial_runs_by_itself() -> None:
    done = run_single(["-m", "fedmpi", "exec", TUTORIALS / "01_pointers.py"], timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("model", "rounds", "tolerance"),
    [("2nn", 1, ONE_ULP), ("softmax", 5, 8 * ONE_ULP)],
    ids=["2nn", "softmax"],
)
def test_averaging_by_pointers_gives_the_numbers_of_a_run(
    model: str,
    rounds: int,
    tolerance: float,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with simulate(workers=3) as workers:
            for worker in workers:
                worker.link.ask(Threads(1), Done)
            _kept = load_shards(workers, folder)
            monkeypatch.setattr(sys, "argv", ["03_averaging.py", model, str(rounds)])
            by_pointers = runpy.run_path(str(TUTORIALS / "03_averaging.py"))["model"].state_dict()
        options = "--fraction 1 --epochs 1 --batch-size 50 --lr 0.1 --seed 0 --name run"
        options += f" --model {model} --rounds {rounds} --path {folder} --out {tmp_path}"
        cli.main(["run", *options.split()], None, "")
    finally:
        torch.set_num_threads(threads)

    state = load_model(tmp_path / "run" / "model.h5")
    assert list(state) == list(by_pointers)
    for name, expected in state.items():
        torch.testing.assert_close(by_pointers[name], expected, rtol=0, atol=tolerance)
