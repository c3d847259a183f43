from pathlib import Path

import pytest
from matplotlib.image import imread

from fedmpi.study.scaling.collect import collect
from fedmpi.study.scaling.plot import draw
from fedmpi.study.scaling.study import Study
from tests.study.scaling.conftest import Fill

SECONDS = {1: [0.4, 0.5, 0.42], 2: [0.2, 0.3, 0.25], 4: [0.3, 0.28, 0.31]}


@pytest.mark.parametrize("kind", ["strong", "weak"])
def test_two_studies_over_each_other(fill: Fill, tmp_path: Path, kind: str) -> None:
    study = collect(fill(Study(kind, (1, 2, 4), 3), SECONDS))
    path = tmp_path / "plot.png"
    draw([study, study], ["one", "$two_of_them"], path, "title")
    assert imread(path).shape[0] > 500


@pytest.mark.parametrize("seconds", [{}, {2: [0.2]}, {1: [0.2]}])
def test_points_that_failed(fill: Fill, tmp_path: Path, seconds: dict[int, list[float]]) -> None:
    draw([collect(fill(Study("strong", (1, 2), 1), seconds))], ["x"], tmp_path / "p.png", "")
    assert (tmp_path / "p.png").exists()
