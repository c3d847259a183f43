"""Jobs that cannot fit are refused before their first round."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from fedmpi.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DetectConfig,
    FederatedConfig,
    RobustConfig,
)
from fedmpi.errors import RemoteError, UsageError
from fedmpi.federated import needs
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.needs import refuse_disk, worker_bytes
from tests.federated.lab import DIGITS, config_of, play_alone

MIB = 2**20


def state() -> FlatState:
    return FlatState(nn.Linear(1023, 1024))  # 4 MiB: one client at a time


def test_a_worker_needs_models_and_a_sum_whatever_its_clients() -> None:
    needed = [worker_bytes(Config(), state(), clients) for clients in (1, 10, 10_000)]
    assert needed == [4 * MIB * 3 + 16 * MIB] * 3


def test_stacked_models_count() -> None:
    config = Config(compute=ComputeConfig(stack=8))
    assert worker_bytes(config, state(), 10) == 4 * MIB * 10 + 16 * MIB


@pytest.mark.parametrize(
    "how", [{"robust": RobustConfig("median")}, {"detect": DetectConfig(score=True)}]
)
def test_updates_that_are_kept_grow_with_the_cohort(how: dict) -> None:
    config = Config(federated=FederatedConfig(fraction=0.5, **how))
    few, many = (worker_bytes(config, state(), clients) for clients in (100, 200))
    assert many - few == 50 * 4 * MIB


def test_what_clients_remember_counts_once_they_have_trained() -> None:
    for rounds, clients in ((1, 10), (5, 50), (10, 100), (50, 100)):
        config = Config(federated=FederatedConfig(fraction=0.1, rounds=rounds))
        with_it, without = (worker_bytes(config, state(), 100, kept) for kept in (True, False))
        assert with_it - without == clients * 4 * MIB


def test_a_job_that_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 3 * MIB)
    with pytest.raises(RemoteError) as caught:
        play_alone(config_of(tmp_path, 2, DIGITS, model="2nn", fraction=1.0), 2)
    told = str(caught.value)
    assert re.search(
        r"rank 1 needs about [\d,]+ KiB of memory for its clients, and 1,024 KiB are", told
    )
    assert "free for each of the 3 ranks of its node: use fewer ranks on a node" in told
    assert caught.value.exit_status == 2


def test_a_run_that_does_not_fit_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "not" / "there" / "yet"
    config = Config(out=str(out), checkpoint=CheckpointConfig(keep=4))
    model = nn.Linear(1023, 1024)
    refuse_disk(config, model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * MIB, total=1))
    with pytest.raises(UsageError, match=r"needs about 104 MiB for the model and 5 checkpoints"):
        refuse_disk(config, model)
    fewer = Config(out=str(out), checkpoint=CheckpointConfig(keep=3))
    refuse_disk(fewer, model)
    with pytest.raises(UsageError, match="for the model and 4 checkpoints"):
        refuse_disk(fewer, model, remember=True)
    assert not out.exists()
