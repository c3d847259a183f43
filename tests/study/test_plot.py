import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from fedmpi.errors import FedMPIError
from fedmpi.study import plot

from .conftest import MakeRounds


def ink(path: Path) -> float:
    """The share of a picture's pixels that are not white, after a look at its size."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 500
    return float((pixels < 0.95).any(axis=2).mean())


@pytest.mark.parametrize("count", [1, 20, 1000])
@pytest.mark.parametrize("metric", ["accuracy", "r2"])
def test_rounds(tmp_path: Path, make_rounds: MakeRounds, count: int, metric: str) -> None:
    rounds = make_rounds(count, metric=metric)
    for draw in (plot.curve, plot.report):
        path = tmp_path / f"{draw.__name__}.png"
        draw(rounds, path, "a run")
        assert 0.01 < ink(path) < 0.6
    assert ink(tmp_path / "report.png") > 0.2, "filled areas"


def test_rounds_without_evaluation_and_a_run_that_diverged(
    tmp_path: Path, make_rounds: MakeRounds
) -> None:
    never = make_rounds(4, eval_every=9)
    diverged = [replace(m, train_loss=math.inf, test_loss=math.nan) for m in make_rounds(4)]
    for rounds in (never, diverged):
        plot.report(rounds, tmp_path / "report.png", "a run")
        assert ink(tmp_path / "report.png") > 0.01


def test_a_long_run_is_drawn_quickly(tmp_path: Path, make_rounds: MakeRounds) -> None:
    rounds = make_rounds(20_000)
    start = time.monotonic()
    plot.report(rounds, tmp_path / "report.png", "a run")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("workers", "classes"), [(1, 2), (7, 10), (64, 10), (64, 100), (3, 1)])
def test_labels(tmp_path: Path, workers: int, classes: int) -> None:
    counts = np.random.default_rng(0).integers(10, 90, (workers, classes))
    plot.labels(counts, [10] * workers, tmp_path / "labels.png", "a dataset")
    assert ink(tmp_path / "labels.png") > 0.2


def test_a_picture_that_cannot_be_written(tmp_path: Path, make_rounds: MakeRounds) -> None:
    with pytest.raises(FedMPIError, match=r"cannot write .*curve\.png: No such file"):
        plot.curve(make_rounds(1), tmp_path / "missing" / "curve.png", "a run")
