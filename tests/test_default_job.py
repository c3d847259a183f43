"""What `make run` runs: the job without any option, as a newcomer meets it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from fedmpi.federated.model_file import load_model
from tests.launch import launchers


@pytest.mark.launch
def test_seven_workers_learn_the_embedded_digits(tmp_path: Path) -> None:
    done = launchers()["mpich"].run(8, ["-m", "fedmpi"], timeout=240, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "round  1/20" in done.stdout
    assert "written to runs/2nn-mnist5k-001" in done.stdout
    run = tmp_path / "runs" / "2nn-mnist5k-001"
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "config.toml",
        "curve.png",
        "logs",
        "metrics.jsonl",
        "model.h5",
        "outcome.json",
    ]
    assert sorted(p.name for p in (run / "logs").iterdir()) == [f"rank-{r}.log" for r in range(8)]
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["round"] for m in rounds] == list(range(1, 21))
    assert rounds[-1]["test_metric"] >= 0.93, "held-out digits"
    assert tomllib.loads((run / "config.toml").read_text())["federated"]["rounds"] == 20
    assert sum(t.numel() for t in load_model(run / "model.h5").values()) == 199_210
