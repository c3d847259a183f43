import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpi.errors import DataError, FedMPIError
from fedmpi.federated.metrics import ClientMetrics, Excluded
from fedmpi.study.metrics_file import ClientsWriter, MetricsWriter, read_metrics

from .conftest import MakeRounds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_rounds_read_back_equal(path: Path, make_rounds: MakeRounds) -> None:
    rounds = make_rounds(3, eval_every=2)
    rounds[1] = replace(rounds[1], excluded=[Excluded(17, 3, "update is NaN")])
    with MetricsWriter(path) as writer:
        for metrics in rounds:
            writer.write(metrics)
    assert read_metrics(path) == rounds


def test_a_round_can_be_read_while_the_run_goes_on(path: Path, make_rounds: MakeRounds) -> None:
    with MetricsWriter(path) as writer:
        writer.write(make_rounds(1)[0])
        assert json.loads(path.read_text())["bytes_sent"] == 5_600_000


def test_a_run_that_diverged_is_not_taken_for_one_without_evaluation(
    path: Path, make_rounds: MakeRounds
) -> None:
    diverged = replace(make_rounds(1)[0], train_loss=math.nan, test_loss=math.inf)
    with MetricsWriter(path) as writer:
        writer.write(diverged)
    (found,) = read_metrics(path)
    assert math.isnan(found.train_loss)
    assert found.test_loss == math.inf


def test_a_cut_off_last_line_is_left_out(path: Path, make_rounds: MakeRounds) -> None:
    with MetricsWriter(path) as writer:
        for metrics in make_rounds(3):
            writer.write(metrics)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 3 is cut off: left out"):
        assert read_metrics(path) == make_rounds(2)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"round": "one"}', b"\xff"])
def test_a_damaged_line_is_named(path: Path, make_rounds: MakeRounds, line: bytes) -> None:
    with MetricsWriter(path) as writer:
        writer.write(make_rounds(1)[0])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is damaged: "):
        read_metrics(path)


def test_files_that_cannot_be_read_or_written(path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*metrics\.jsonl: No such file"):
        read_metrics(path)
    path.write_text("an older run's")
    with pytest.raises(FedMPIError, match=r"cannot write .*metrics\.jsonl: File exists"):
        MetricsWriter(path)


@contextmanager
def files_at_most(n_bytes: int) -> Iterator[None]:
    """A quota, as a stand-in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_earlier_rounds_remain(path: Path, make_rounds: MakeRounds) -> None:
    first, second = make_rounds(2)
    with MetricsWriter(path) as writer:
        writer.write(first)
        with (
            files_at_most(path.stat().st_size + 10),
            pytest.raises(FedMPIError, match=r"cannot write .*metrics\.jsonl: File too large"),
        ):
            writer.write(second)
    with pytest.warns(UserWarning, match="cut off"):
        assert read_metrics(path) == [first]


def test_clients(tmp_path: Path) -> None:
    path = tmp_path / "clients.jsonl"
    with ClientsWriter(path) as writer:
        writer.write([ClientMetrics(1, k, 1 + k % 3, 60, 0.5, 0.9) for k in range(70)])
        writer.write([])
    lines = path.read_text().splitlines()
    assert len(lines) == 70
    assert lines[5] == (
        '{"round": 1, "client": 5, "rank": 3, "rows": 60, "loss": 0.5, "metric": 0.9}'
    )
