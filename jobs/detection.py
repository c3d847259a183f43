"""How well detection finds attackers: every attack, with and without exclusion.

    python -m jobs.detection          (make detection)

mnist5k on 28 clients, half of them in a round, of which a fifth attack from the first round on:
FedAvg of McMahan's 2NN with E = 5, B = 10, lr 0.1. Each attack runs twice, once with clients
only scored, once with suspects left out. What counts is a client in a round: precision is the
share of those named that attack, recall the share of attackers that are named. Clients whose
update is NaN are left out by every round, and count as named. Then a run without an attack,
in which whoever is named is a false alarm. IID, and Dirichlet(0.3).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import get_args

from rich.console import Console
from rich.table import Table

from fedmpi.config import (
    AttackConfig,
    AttackKind,
    CommConfig,
    ComputeConfig,
    Config,
    DataConfig,
    DetectConfig,
    FederatedConfig,
    Partition,
)
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import ClientScore, RoundMetrics
from fedmpi.workers.in_process import in_process_crew

HEAD = (
    "attack", "accuracy", "with exclusion", "precision", "recall", "F1", "honest named"
)  # fmt: skip


@dataclass
class Found:
    """Counts of clients in rounds.

    Attributes:
        accuracy: after the last round.
        hits, missed: attackers that were named, and that were not.
        false_alarms, honest: honest clients that were named, and all of them.
    """

    accuracy: float = 0.0
    hits: int = 0
    missed: int = 0
    false_alarms: int = 0
    honest: int = 0

    @property
    def precision(self) -> float:
        named = self.hits + self.false_alarms
        return self.hits / named if named else float("nan")

    @property
    def recall(self) -> float:
        attackers = self.hits + self.missed
        return self.hits / attackers if attackers else float("nan")

    @property
    def f1(self) -> float:
        named, attackers = self.hits + self.false_alarms, self.hits + self.missed
        return 2 * self.hits / (named + attackers) if attackers else float("nan")


def job(chosen: argparse.Namespace, partition: Partition, kind: AttackKind) -> Config:
    attack = AttackConfig() if kind == "none" else AttackConfig(kind, chosen.attackers)
    detect = DetectConfig(score=True, threshold=chosen.threshold, root_loss=chosen.root_loss)
    return Config(
        seed=chosen.seed,
        data=DataConfig(source=chosen.source, clients=chosen.clients, partition=partition),
        federated=FederatedConfig(rounds=chosen.rounds, lr=0.1, detect=detect),
        attack=attack,
        comm=CommConfig(workers=chosen.workers),
        compute=ComputeConfig(device="cpu"),
    )


def run(config: Config) -> Found:
    found = Found()
    scores: list[list[ClientScore]] = []
    rounds: list[RoundMetrics] = []
    with in_process_crew(config.comm.workers) as crew:
        playing = Job(config, crew)
        playing.run(Observer(rounds.append, lambda clients: None, scores.append))
    for metrics, scored in zip(rounds, scores, strict=True):
        left_out = {one.client for one in metrics.excluded}
        named = left_out | {suspect.client for suspect in metrics.suspects}
        for client in left_out | {score.client for score in scored}:
            if client in playing.attackers:
                found.hits += client in named
                found.missed += client not in named
            else:
                found.false_alarms += client in named
                found.honest += 1
    found.accuracy = rounds[-1].test_metric or 0.0
    return found


def row(kind: str, looked: Found, excluded: Found) -> list[str]:
    def share(value: float) -> str:
        return "-" if value != value else f"{value:.2f}"

    return [
        kind,
        f"{100 * looked.accuracy:.1f} %",
        f"{100 * excluded.accuracy:.1f} %",
        *map(share, (excluded.precision, excluded.recall, excluded.f1)),
        f"{excluded.false_alarms} of {excluded.honest}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--source", default="mnist5k")
    parser.add_argument("--clients", type=int, default=28)
    parser.add_argument("--attackers", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=DetectConfig.threshold)
    parser.add_argument("--no-root-loss", dest="root_loss", action="store_false")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--partitions", nargs="+", default=["iid", "dirichlet"])
    parser.add_argument("--kinds", nargs="+", choices=get_args(AttackKind))
    chosen = parser.parse_args()
    kinds = chosen.kinds or [*get_args(AttackKind)[1:], "none"]
    console = Console()
    for partition in chosen.partitions:
        rows = []
        for kind in kinds:
            config = job(chosen, partition, kind)
            detect = replace(config.federated.detect, exclude=True)
            excluding = replace(config, federated=replace(config.federated, detect=detect))
            rows.append(row(kind, run(config), run(excluding)))
            print(f"{partition}: {' '.join(rows[-1])}", flush=True)
        table = Table(*HEAD, title=f"{chosen.source}, {partition}")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
        for cells in (HEAD, ["---"] * len(HEAD), *rows):
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
