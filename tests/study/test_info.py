import io
import json
import os
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console

from fedmpi import cli
from fedmpi.errors import DataError
from fedmpi.study import info

MPI = {"library": "MPICH 5.0.0", "ranks": 4, "launcher": "mpirun", "gpu_aware": False}


def printed(rows: list[info.Facts]) -> str:
    out = io.StringIO()
    info.table(rows, MPI, Console(file=out, width=120))
    return out.getvalue()


def test_describe_can_be_sent() -> None:
    facts = info.describe()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts)) == facts
    assert facts["cores"] == sorted(os.sched_getaffinity(0))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "PACKAGES", ("no-such-package",))
    assert info.describe()["versions"]["no-such-package"] == "not installed"


@pytest.fixture
def facts() -> info.Facts:
    return info.describe() | {"host": "node1", "cores": [0, 1], "threads": 1, "cuda": []}


def test_table_by_node(facts: info.Facts) -> None:
    gpus = {"host": "node2", "cuda": ["H100", "H100"], "memory": 512 * 10**9}
    text = printed([facts, facts, facts | gpus, facts | gpus])
    assert "MPICH 5.0.0" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("node1 0-1 2 1 ") and line.endswith("none") for line in lines)
    assert "node2 2-3 2 1 512 GB 2 x H100" in lines
    assert "note:" not in text


def test_table_points_out_versions_that_differ(facts: info.Facts) -> None:
    other = facts | {"host": "node2", "versions": facts["versions"] | {"numpy": "1.0"}}
    text = printed([facts, other, facts, other])
    ours = facts["versions"]["numpy"]
    assert f"note: numpy differs: {ours} on ranks 0, 2, 1.0 on ranks 1, 3" in text


def test_table_points_out_crowded_nodes(facts: info.Facts) -> None:
    text = printed([facts] * 3)
    assert "note: node1 has 2 cores for 3 threads (3 ranks)" in text
    pinned = [facts | {"cores": [core]} for core in range(3)]
    assert "note:" not in printed(pinned)


def test_facts_of_every_rank_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    cli.main(["info", "--out", str(path)], None, "")
    told = json.loads(path.read_text())
    assert told["mpi"]["ranks"] == len(told["ranks"]) == 1
    [rank] = told["ranks"]
    assert set(rank["physical_cores"]) <= set(range(os.cpu_count() or 1))
    assert 1 <= len(rank["physical_cores"]) <= len(rank["cores"])
    with pytest.raises(DataError, match="nowhere"):
        cli.main(["info", "--out", str(tmp_path / "nowhere" / "x.json")], None, "")
