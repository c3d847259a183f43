"""Jobs on small prepared datasets, and what comes out of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmpi import models
from fedmpi.config import CommConfig, ComputeConfig, Config, DataConfig, FederatedConfig, Recipe
from fedmpi.data.blocks import held_out
from fedmpi.data.index import read_index
from fedmpi.data.shard import open_shard
from fedmpi.federated.cohort import cohort_of_round
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import ClientMetrics, RoundMetrics
from fedmpi.federated.seeds import derive
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare
from tests.comm.worlds import byte_view
from tests.federated.reference import Rows

DIGITS = Recipe(source="digits", clients=14, partition="dirichlet", alpha=1.0)
BAD = 2
"""The client of `spoiled` whose rows no training survives."""
QUICK: dict[str, Any] = {"rounds": 2, "epochs": 2, "fraction": 0.6, "lr": 0.1, "lr_decay": 0.9}


@dataclass
class Played:
    """A job that has ended."""

    job: Job
    rounds: list[RoundMetrics]
    clients: list[list[ClientMetrics]]

    @property
    def model(self) -> nn.Module:
        return self.job.model


def config_of(
    folder: Path,
    workers: int,
    recipe: Recipe = DIGITS,
    *,
    seed: int = 0,
    model: str = "2nn",
    comm: CommConfig | None = None,
    **federated: Any,
) -> Config:
    """A job on shards of the recipe, which are prepared under the folder if they are not there."""
    path = folder / f"{Path(recipe.source).stem}-{recipe.clients}c-{workers}w"
    scattered = federated.get("mode") == "scatter"
    if not path.exists():
        prepare(recipe, workers, path, None)
    return Config(
        seed=seed,
        model=model,
        data=DataConfig(**vars(recipe), path="" if scattered else str(path)),
        federated=FederatedConfig(**{**QUICK, **federated}),
        comm=comm or CommConfig(chunk_kib=4),
        compute=ComputeConfig(device="cpu"),
    )


def play(config: Config, crew: Crew) -> Played:
    played = Played(Job(config, crew), [], [])
    played.job.run(Observer(played.rounds.append, played.clients.append))
    return played


def play_alone(config: Config, workers: int) -> Played:
    """On threads of this process."""
    with in_process_crew(workers) as crew:
        return play(config, crew)


def bits(model: nn.Module) -> dict[str, bytes]:
    """The state, to the bit."""
    return {name: byte_view(t).numpy().tobytes() for name, t in model.state_dict().items()}


@dataclass
class Known:
    """What a job started from, found without it."""

    model: nn.Module
    clients: dict[int, Rows]
    test: Rows
    cohorts: list[list[int]]
    classes: int


def known(config: Config) -> Known:
    """First weights, rows of every client, and the cohorts that the seed draws."""
    index = read_index(config.data.path)
    clients: dict[int, Rows] = {}
    for k in range(len(index.shards)):
        shard = open_shard(config.data.path, index, k, cache_mib=0)
        clients |= {client: shard.load(client) for client in shard.ids}
        shard.close()
    torch.manual_seed(derive(config.seed, "model"))
    model = models.build(config.model, index.row_shape, index.classes)
    how = config.federated
    cohorts = [
        cohort_of_round(config.seed, number, sorted(clients), how.fraction)
        for number in range(1, how.rounds + 1)
    ]
    [test] = held_out(config.data.path, index, index.test.rows, cache_mib=0)
    return Known(deepcopy(model), clients, test, cohorts, index.classes)


def with_path(config: Config, folder: Path, workers: int, recipe: Recipe = DIGITS) -> Config:
    """The same job on another number of shards."""
    other = config_of(folder, workers, recipe)
    return replace(config, data=other.data)


def furthest(found: nn.Module, expected: nn.Module) -> float:
    """The largest difference between two states."""
    pairs = zip(found.state_dict().items(), expected.state_dict().items(), strict=True)
    return max(
        float((a.double() - b.double()).abs().max()) for (_, a), (_, b) in pairs if a.numel()
    )


def check_phases(rounds: Sequence[RoundMetrics]) -> None:
    """The phases of a round are all of it: what is lost lies between two looks at the clock.

    A machine at work elsewhere may take the core away just there, but not in most rounds.
    """
    lost = [abs(m.seconds - sum(m.phases.values())) - 0.02 * m.seconds for m in rounds]
    assert all(min(m.phases.values()) >= 0 for m in rounds)
    assert statistics.median(lost) <= 5e-3, [(m.seconds, m.phases) for m in rounds]
