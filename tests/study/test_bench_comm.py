"""`fedmpi bench comm`: a real launch, its tables and files, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedmpi.errors import UsageError
from fedmpi.study import bench_comm as module
from fedmpi.study.bench_comm import bench_comm, measure, sizes
from fedmpi.study.bench_ranks import Transfer
from fedmpi.workers.in_process import in_process_crew
from tests.launch import launchers, run_single


def test_sizes_end_with_the_largest() -> None:
    assert sizes(8) == [8]
    assert sizes(512) == [8, 64, 512]
    assert sizes(1000) == [8, 64, 512, 1000]


def test_threads_cannot_be_compared_with_mpi(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with in_process_crew(1) as crew, pytest.raises(UsageError, match="mpirun -n 2 python -m"):
        bench_comm(crew, console, 8, 1024, str(tmp_path))
    with pytest.raises(UsageError, match="with 2 ranks or more"):
        bench_comm(None, console, 8, 1024, str(tmp_path))


@pytest.mark.launch
def test_a_launch(tmp_path: Path) -> None:
    arguments = ["-m", "fedmpi", "bench", "comm", "--most-mib", "1", "--out", tmp_path / "new"]
    done = launchers()["mpich"].run(2, arguments, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("frames", "Bcast", "Reduce", "while they wait, workers use"):
        assert word in done.stdout
    record = json.loads((tmp_path / "new" / "comm-2.json").read_text())
    assert record["ranks"] == 2
    assert len(record["lines"]) == (2 + 3 + 3) * len(sizes(2**20))
    assert all(0 < line["least"] <= line["seconds"] for line in record["lines"])
    assert (tmp_path / "new" / "comm-2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.launch
def test_a_length_out_of_range_is_refused(tmp_path: Path) -> None:
    arguments = ["-m", "fedmpi", "bench", "comm", "--most-mib", "0"]
    done = run_single(arguments, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert "most_mib = 0: expected 1 to 4096 MiB" in done.stderr


def test_what_is_slow_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that wait at full speed and share cores take seconds for what takes microseconds."""

    def took(crew: object, asked: Transfer) -> list[float]:
        slow = asked.how == "mpi" and asked.nbytes > 8
        return [4.0 if slow else 1e-3] * asked.repeats

    monkeypatch.setattr(module, "_one", took)
    lines = measure(None, 64, 1024)  # type: ignore[arg-type]
    for line in lines:
        slow = line.how == "mpi" and line.nbytes > 8
        assert line.seconds == (4.0 if slow else 1e-3)
        assert line.repeats == (1 if slow else 201)
