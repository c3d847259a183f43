"""A run of 10,000 rounds takes no more memory, files and threads than one of a few."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import psutil
import pytest

from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.workers.in_process import in_process_crew
from tests.federated.lab import DIGITS, config_of

ROUNDS = 10_000
SETTLED = 1_000
"""Rounds after which everything that is loaded once is there: numba, kept memory, caches."""
MOST_GROWTH = 8 * 2**20
"""Bytes: allocators move a little; 100 bytes a round would be 0.9 MB."""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_nothing_grows(tmp_path: Path) -> None:
    process = psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def look(metrics: RoundMetrics) -> None:
        if metrics.round in (SETTLED, ROUNDS):
            gc.collect()
            seen.append((process.memory_info().rss, process.num_fds(), threading.active_count()))

    config = config_of(
        tmp_path, 2, DIGITS, model="softmax", rounds=ROUNDS, epochs=1, eval_every=100, fraction=0.3
    )
    with in_process_crew(2) as crew:
        Job(config, crew).run(Observer(look, lambda clients: None))
    (before, *counts), (after, *counts_after) = seen
    assert counts == counts_after
    assert after - before < MOST_GROWTH
