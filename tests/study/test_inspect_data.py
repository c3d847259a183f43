import io
from pathlib import Path

import pytest
from rich.console import Console

from fedmpi.config import Recipe
from fedmpi.errors import DataError
from fedmpi.study.inspect_data import _label_cells, inspect
from fedmpi.workers.shards import prepare


def inspected(folder: Path) -> str:
    out = io.StringIO()
    path = inspect(folder, Console(file=out, width=80))
    assert path == folder / "labels.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    return "\n".join(" ".join(line.split()) for line in out.getvalue().splitlines())


def test_classification(tmp_path: Path) -> None:
    index = prepare(Recipe(source="digits", clients=12, partition="dirichlet"), 3, tmp_path / "d")
    text = inspected(tmp_path / "d")
    assert text.startswith("digits: 10 classes, ")
    first = index.shards[0]
    counts = " ".join(map(str, first.label_counts))
    assert f"\n1 {first.clients} {first.rows} {counts}\n" in text
    assert f"\nall 12 {index.rows} " in text
    assert f"\ntest {index.test.rows}\n" in text


def test_regression(tmp_path: Path) -> None:
    index = prepare(Recipe(source="diabetes", clients=4), 2, tmp_path / "d")
    text = inspected(tmp_path / "d")
    assert text.startswith("diabetes: regression, ")
    assert f"\nall 4 {index.rows}\n" in text


def test_many_labels_are_summed_up() -> None:
    counts = [0] * 100
    counts[7], counts[42] = 10, 30
    assert _label_cells(counts, 100) == ["2", "42 (75 %)"]


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index\.json"):
        inspect(tmp_path, Console(file=io.StringIO()))
