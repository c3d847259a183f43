import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from fedmpi.errors import UsageError
from fedmpi.study.scaling.collect import collect, labels
from fedmpi.study.scaling.study import Study, StudyFolder
from fedmpi.study.scaling.table import show, write_csv
from tests.study.scaling.conftest import Fill


def test_speed_up_and_efficiency_of_strong_scaling(fill: Fill) -> None:
    found = collect(
        fill(Study("strong", (1, 2, 4), 2), {1: [0.4, 0.5], 2: [0.2, 0.3], 4: [0.3] * 2})
    )
    one, two, four = found.points
    assert one.seconds == (0.4, 0.5)
    assert one.time
    assert (one.time.low, one.time.median, one.time.high) == (0.4, 0.45, 0.5)
    speed_up, efficiency = found.speed_up(two), found.efficiency(two)
    assert speed_up
    assert efficiency
    assert speed_up.value == pytest.approx(0.45 / 0.25)
    assert (speed_up.low, speed_up.high) == pytest.approx((0.4 / 0.3, 0.5 / 0.2))
    assert efficiency.value == pytest.approx(0.9)
    assert [p.crowded for p in found.points] == [False, False, True]
    assert one.phases["train"] == 1.19
    assert one.bytes_sent == 5_600_000
    assert four.failures == ()


def test_weak_scaling_counts_the_work_that_has_grown(fill: Fill) -> None:
    found = collect(fill(Study("weak", (2, 4), 1), {2: [0.4], 4: [0.5]}))
    speed_up, efficiency = found.speed_up(found.points[1]), found.efficiency(found.points[1])
    assert speed_up
    assert efficiency
    assert speed_up.value == pytest.approx(1.6)
    assert efficiency.value == pytest.approx(0.8)


def test_what_is_missing_or_cut_off_is_said(fill: Fill) -> None:
    folder = fill(Study("strong", (1, 2, 4), 3), {1: [0.4, 0.4, 0.4], 2: [0.2, 0.2]})
    metrics = folder.run(1, 2) / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    config = folder.run(2, 1) / "config.toml"
    config.write_text(config.read_text().replace("epochs = 1", "epochs = 2"))
    (folder.run(1, 3) / "metrics.jsonl").write_text("{}\n")
    found = collect(folder)
    one, two, four = found.points
    assert len(one.seconds) == len(two.seconds) == 1
    assert one.failures[0] == "run-2: 2 of 4 rounds"
    assert "damaged" in one.failures[1]
    assert two.failures == (
        "run-1: another job: federated.epochs = 2 instead of 1",
        "run-3: missing",
    )
    assert four.time is None
    assert four.machine is None
    assert len(four.failures) == 3

    out = io.StringIO()
    show(found, Console(file=out, width=110))
    text = out.getvalue()
    assert "1 of 3" in text
    assert "failed" in text
    assert "base case: 1 worker and the owner, 400 ms a round" in text
    assert "w0001 run-2: 2 of 4 rounds" in text
    write_csv(found, folder.table)
    rows = list(csv.DictReader(folder.table.open()))
    assert [row["runs"] for row in rows] == ["1", "1", "0"]
    assert rows[2]["seconds"] == rows[2]["speed_up"] == ""
    assert "run-1: missing" in rows[2]["failures"]


def test_without_a_base_case(fill: Fill) -> None:
    found = collect(fill(Study("strong", (1, 2), 1), {2: [0.2]}))
    assert found.speed_up(found.points[1]) is None
    out = io.StringIO()
    show(found, Console(file=out, width=110))
    assert "no base case" in out.getvalue()


def test_runs_beyond_those_asked_for_count(fill: Fill) -> None:
    found = collect(fill(Study("strong", (1,), 1), {1: [0.2, 0.4, 0.6]}))
    assert found.base.seconds == (0.2, 0.4, 0.6)


def test_a_damaged_machine_file(fill: Fill) -> None:
    folder = fill(Study("strong", (1,), 1), {1: [0.2]})
    folder.machine(1).write_text("{}")
    with pytest.raises(UsageError, match=r"machine\.json is damaged"):
        collect(folder)


def test_labels() -> None:
    folders = [StudyFolder(Path("a/local")), StudyFolder(Path("slurm"))]
    assert labels(folders, []) == ["local", "slurm"]
    assert labels(folders, ["x", "y"]) == ["x", "y"]
    with pytest.raises(UsageError, match="1 labels for 2 studies"):
        labels(folders, ["x"])
