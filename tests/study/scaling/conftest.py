"""A study's folder, filled as its jobs would."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpi.config import Config, DataConfig, FederatedConfig, to_toml
from fedmpi.study.metrics_file import MetricsWriter
from fedmpi.study.run_folder import RunFolder
from fedmpi.study.scaling.study import Study, StudyFolder
from tests.study.conftest import MakeRounds

CONFIG = Config(
    data=DataConfig(source="digits", clients=8), federated=FederatedConfig(rounds=4, epochs=1)
)
Fill = Callable[..., StudyFolder]


@pytest.fixture
def fill(tmp_path: Path, make_rounds: MakeRounds) -> Fill:
    """`fill(study, {1: [0.4, 0.5], 2: [0.2]})`: seconds of a round, for each run at each point."""

    def made(study: Study, seconds: dict[int, list[float]], cores: int = 2) -> StudyFolder:
        folder = StudyFolder(tmp_path / "study")
        folder.path.mkdir()
        folder.save(study)
        folder.config.write_text(to_toml(CONFIG))
        for workers, runs in seconds.items():
            folder.point(workers).mkdir()
            ranks = [{"host": "here", "physical_cores": [core]} for core in range(cores)]
            mpi = {"launcher": "mpirun of MPICH", "library": "MPICH Version: 5.0.2"}
            folder.machine(workers).write_text(json.dumps({"mpi": mpi, "ranks": ranks}))
            data = replace(CONFIG.data, clients=study.clients(workers, CONFIG))
            for k, value in enumerate(runs, start=1):
                out = str(folder.point(workers))
                run = RunFolder.create(replace(CONFIG, data=data, out=out, name=f"run-{k}"))
                with MetricsWriter(run.metrics) as lines:
                    for m in make_rounds(CONFIG.federated.rounds):
                        # The first round is slow, and is not to count.
                        lines.write(replace(m, seconds=9.0 if m.round == 1 else value))
        return folder

    return made
