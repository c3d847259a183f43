"""A person's own model that does not fit the data, and a person's own data that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.faults.jobs import half_written, run
from tests.launch import Launcher


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("own:wide_rows", "model own:wide_rows does not fit rows of shape [1, 8, 8]"),
        ("own:few_outputs", "an output of [2, 3] for 2 rows of shape [1, 8, 8]: expected [2, 10]"),
        ("own:no_parameters", "model own:no_parameters has no parameters to train"),
        ("own:broken_factory", "RuntimeError: no weights in this folder"),
        ("linear", "model linear is linear regression but the data has 10 classes"),
        ("lenet", "at least 12x12 pixels, the rows have shape [1, 8, 8]"),
    ],
)
@pytest.mark.parametrize("mode", ["shards", "scatter", "cyclic"])
def test_a_model_that_does_not_fit(
    refused, prepared: Path, here: Path, model: str, words: str, mode: str
) -> None:
    data = ["--source=digits", "--clients=4"] if mode == "scatter" else [f"--path={prepared}"]
    error = refused("run", "--workers=2", f"--mode={mode}", f"--model={model}", *data)
    assert words in str(error)
    assert error.exit_status == 2
    assert not (here / "runs").exists()


def table(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """60 rows of 5 features and 3 classes, with some arrays replaced or left out."""
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(60, 5)).astype("float32"), "y": np.arange(60) % 3}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def spoiled(value: float) -> np.ndarray:
    x = table()["x"].astype("float64")
    x[7, 2] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (table(x=spoiled(np.nan)), "own.npz: x[7] holds NaN, infinity"),
        (table(x=spoiled(-np.inf)), "own.npz: x[7] holds NaN, infinity"),
        (table(x=spoiled(1e300)), "x[7] holds NaN, infinity"),
        (table(x_test=spoiled(np.nan), y_test=table()["y"]), "own.npz: x_test[7] holds NaN"),
        (table(y=np.where(np.arange(60) == 4, np.nan, 1.0)), "own.npz: y[4] is NaN"),
        (table(y=np.arange(60) % 3 - 1), "own.npz: y[0] is -1: expected labels from 0 up"),
        (table(y=np.arange(60) % 3 * 2), "no row has label 1"),
        (table(y=np.array(["cat"] * 60)), "own.npz: y is <U3 [60]: expected integers"),
        (table(y=np.arange(59) % 3), "own.npz: x has 60 rows but its labels have 59"),
        (table(y=None), "own.npz has no y: expected arrays x and y, found x"),
        (table(x=np.zeros(60)), "own.npz: x is float64 [60]: expected numbers [rows, features]"),
        (table(x=np.array([None] * 60)), "own.npz: x holds Python objects"),
        (table(x=np.zeros((0, 5)), y=np.zeros(0, int)), "own.npz: x is float64 [0, 5]"),
    ],
)
@pytest.mark.parametrize("command", ["prepare", "run", "scatter"])
def test_data_that_cannot_be_used(
    refused, here: Path, arrays: dict[str, np.ndarray], words: str, command: str
) -> None:
    np.savez(here / "own.npz", **arrays)
    error = {
        "prepare": lambda: refused("prepare", "own.npz", "--clients=4", "--workers=2"),
        "run": lambda: refused("run", "--source=own.npz", "--clients=4", "--workers=2"),
        "scatter": lambda: refused(
            "run", "--source=own.npz", "--clients=4", "--workers=2", "--mode=scatter"
        ),
    }[command]()
    assert words in str(error)
    assert [path.name for path in here.rglob("*") if path.suffix in (".h5", ".json")] == []
    assert half_written(here) == []


@pytest.mark.launch
def test_nan_under_mpirun(mpich: Launcher, here: Path) -> None:
    """With normalise = none it is the workers who meet the NaN, in the middle of their shards."""
    np.savez(here / "own.npz", **table(x=spoiled(np.nan)))
    done = run(mpich, 3, "--source=own.npz", "--clients=4", "--normalise=none")
    done.told("own.npz: x[7] holds NaN, infinity")
    assert done.status == 2
    assert [path.name for path in here.rglob("*") if path.suffix in (".h5", ".json")] == []
    assert half_written(here) == []
