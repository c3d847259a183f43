"""Workers that read, write and hash for long show that they live, row by row and block by block."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedmpi.config import CheckpointConfig, CommConfig, from_mapping
from fedmpi.data import files
from fedmpi.federated import client_memory
from fedmpi.federated.checkpoint import rounds_in
from fedmpi.federated.job import Job
from fedmpi.federated.taking_over import Taken, TakeShard
from fedmpi.study.recorded_run import run
from fedmpi.workers.heartbeat import Heartbeat
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare
from tests.federated.lab import DIGITS, config_of


def test_every_block_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 1000)
    (tmp_path / "it").write_bytes(content := bytes(range(256)) * 20)
    blocks: list[int] = []
    assert files.sha256(tmp_path / "it", lambda: blocks.append(1)) == (
        hashlib.sha256(content).hexdigest()
    )
    assert len(blocks) == 6


def test_clients_memory_takes_longer_than_the_limit_of_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = client_memory.as_array

    def slow(tensor: Any) -> Any:
        time.sleep(0.2)
        return array(tensor)

    monkeypatch.setattr(client_memory, "as_array", slow)
    scaffold = from_mapping({"federated": {"strategy": {"kind": "scaffold"}}}, "").federated
    config = replace(
        config_of(
            tmp_path,
            1,
            model="softmax",
            rounds=1,
            fraction=1.0,
            strategy=scaffold.strategy,
            comm=CommConfig(silence_seconds=1.0),
        ),
        checkpoint=CheckpointConfig(every_rounds=1),
        out=str(tmp_path / "runs"),
        name="it",
    )
    begun = time.monotonic()
    with in_process_crew(1) as crew:
        folder = run(config, crew, Console(quiet=True)).folder
    assert time.monotonic() - begun > 0.2 * DIGITS.clients > 1.5
    assert rounds_in(folder.checkpoints) == [1]


def test_every_block_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is written, when it is opened, and when it is taken over from a dead worker."""
    monkeypatch.setattr(files, "BLOCK", 1000)
    beats: Counter[tuple[int, str]] = Counter()

    def count(heartbeat: Heartbeat) -> None:
        beats[heartbeat.endpoint.rank, heartbeat.command] += 1

    monkeypatch.setattr(Heartbeat, "between", count)
    config = config_of(tmp_path, 2)
    with in_process_crew(2) as crew:
        index = prepare(DIGITS, 2, config.data.path, crew, overwrite=True)
        Job(config, crew)
        crew.tell(1, TakeShard(config.data.path, 1))
        crew.hear([1], Taken)
    blocks = [(Path(config.data.path) / s.file).stat().st_size // 1000 for s in index.shards]
    assert beats[1, "WriteShards"] > blocks[0] > 10
    assert beats[1, "SetUp"] > blocks[0]
    assert beats[1, "TakeShard"] > blocks[1]
