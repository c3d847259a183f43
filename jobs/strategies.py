"""Rounds to a target accuracy for every strategy, on clients whose labels are skewed.

    python -m jobs.strategies                             mnist5k: about ten minutes on two cores
    python -m jobs.strategies --root MNIST_FOLDER         all of MNIST
    python -m jobs.strategies --seeds 1 fedavg fednova    one seed in place of three, of two of them

100 clients share the rows by Dirichlet(0.1) over the labels, 10 of them train in a round. For every
strategy the options of its grid are tried, and the fewest rounds count (median over the seeds; a
run that does not get there counts as the limit and one). The table goes to the screen, and as
markdown with all runs to runs/strategies.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedmpi.config import ComputeConfig, Config, DataConfig, FederatedConfig, StrategyConfig
from fedmpi.errors import SpoiledError
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare_once

GRIDS: dict[str, dict[str, list[float]]] = {
    "fedavg": {"lr": [0.1, 0.2, 0.3]},
    "fedavgm": {"lr": [0.03, 0.1, 0.3]},
    "fedadam": {"lr": [0.1, 0.3], "server_lr": [0.01, 0.03]},
    "fedyogi": {"lr": [0.1, 0.3], "server_lr": [0.01, 0.03]},
    "fedadagrad": {"lr": [0.1, 0.3], "server_lr": [0.03, 0.1]},
    "fedprox": {"lr": [0.2, 0.3], "mu": [0.01, 0.1]},
    "scaffold": {"lr": [0.05, 0.1, 0.2]},
    "fednova": {"lr": [0.1, 0.2, 0.3]},
}
"""What is tuned; all else is as in the paper of the strategy, see docs/strategies.md."""


@dataclass(frozen=True)
class Run:
    """One job of the table, and what came of it.

    Attributes:
        strategy: its name.
        options: of its grid, with their values.
        seed: of the run.
        rounds: to the target; None if it was not reached.
        best: accuracy.
        seconds: of all rounds.
    """

    strategy: str
    options: tuple[tuple[str, float], ...]
    seed: int
    rounds: int | None = None
    best: float = 0.0
    seconds: float = 0.0

    @property
    def settings(self) -> str:
        """`lr 0.1, mu 0.01`."""
        return ", ".join(f"{name} {value:g}" for name, value in self.options)


def play(run: Run, data: DataConfig, federated: dict[str, object], model: str) -> Run:
    """Trains until the target or the limit, on one worker of this process."""
    options = dict(run.options)
    lr = options.pop("lr")
    strategy = StrategyConfig(run.strategy, **options)
    config = Config(
        seed=run.seed,
        model=model,
        data=data,
        federated=FederatedConfig(lr=lr, strategy=strategy, **federated),
        compute=ComputeConfig(device="cpu"),
    )
    seen: list[RoundMetrics] = []
    begun = time.perf_counter()
    with in_process_crew(1) as crew:
        job = Job(config, crew)
        # A choice of options may diverge: it has then not reached the target.
        with suppress(SpoiledError):
            job.run(Observer(seen.append, lambda clients: None))
    accuracies = [m.test_metric or 0.0 for m in seen] or [0.0]
    reached = accuracies[-1] >= config.federated.target_accuracy
    return Run(
        run.strategy,
        run.options,
        run.seed,
        len(seen) if reached else None,
        max(accuracies),
        time.perf_counter() - begun,
    )


@dataclass(frozen=True)
class Found:
    """A strategy with one choice of options, over all seeds."""

    settings: str
    median: float
    reached: int
    best: float

    @classmethod
    def of(cls, runs: list[Run], limit: int) -> Found:
        rounds = [run.rounds or limit + 1 for run in runs]
        reached = sum(run.rounds is not None for run in runs)
        best = statistics.median(run.best for run in runs)
        return cls(runs[0].settings, statistics.median(rounds), reached, best)


def lines(done: list[Run], limit: int, seeds: int) -> list[list[str]]:
    """The table: for each strategy its best options."""
    by_choice: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in done:
        by_choice[run.strategy, run.settings].append(run)
    best: dict[str, Found] = {}
    for (strategy, _), runs in by_choice.items():
        if len(runs) == seeds:
            found = Found.of(runs, limit)
            before = best.get(strategy, found)
            best[strategy] = min(before, found, key=lambda f: (f.median, -f.best))
    plain = best.get("fedavg")
    return [
        [
            strategy,
            found.settings,
            f"{found.median:g}" if found.median <= limit else f"not in {limit}",
            f"{plain.median / found.median:.2f}"
            if plain and max(plain.median, found.median) <= limit
            else "-",
            f"{found.reached} of {seeds}",
            f"{found.best:.1%}",
        ]
        for strategy in GRIDS
        if (found := best.get(strategy))
    ]


HEADER = ["strategy", "options", "rounds", "FedAvg's / these", "runs at target", "best accuracy"]


def markdown(rows: list[list[str]], done: list[Run], settings: str) -> str:
    """The table and all runs."""
    text = [settings, "", f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    text += [f"| {' | '.join(row)} |" for row in rows]
    text += ["", "All runs:", "", "| strategy | options | seed | rounds | best | seconds |"]
    text += ["|---" * 6 + "|"]
    text += [
        f"| {r.strategy} | {r.settings} | {r.seed} | {r.rounds or '-'} | {r.best:.1%} "
        f"| {r.seconds:.0f} |"
        for r in sorted(done, key=lambda r: (list(GRIDS).index(r.strategy), r.options, r.seed))
    ]
    return "\n".join([*text, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("strategies", nargs="*", metavar="STRATEGY", help="none: all")
    parser.add_argument("--root", default="", help="folder with the IDX files of MNIST")
    parser.add_argument("--model", default="2nn")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=100, help="limit")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/strategies.md"))
    chosen = parser.parse_args()
    for name in chosen.strategies:
        if name not in GRIDS:
            parser.error(f"unknown strategy {name!r}: one of {', '.join(GRIDS)}")
    data = DataConfig(
        source="mnist" if chosen.root else "mnist5k",
        root=chosen.root,
        clients=100,
        partition="dirichlet",
        alpha=0.1,
    )
    prepare_once(data, 1, None)  # before all processes want to
    federated = {
        "rounds": chosen.rounds,
        "fraction": 0.1,
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "target_accuracy": chosen.target,
    }
    settings = (
        f"{data.source}, {chosen.model}, 100 clients by Dirichlet(0.1), 10 in a round, "
        f"E = {chosen.epochs}, B = {chosen.batch_size}; rounds to {chosen.target:.0%}, "
        f"at most {chosen.rounds}; median of {chosen.seeds} seed(s)"
    )
    runs = [
        Run(strategy, tuple(zip(grid, values, strict=True)), seed)
        for seed in range(chosen.seeds)
        for strategy in chosen.strategies or GRIDS
        for grid in [GRIDS[strategy]]
        for values in product(*grid.values())
    ]
    console, done = Console(), list[Run]()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, spawn) as pool:
        waiting = [pool.submit(play, run, data, federated, chosen.model) for run in runs]
        for ended in as_completed(waiting):
            run = ended.result()
            done.append(run)
            reached = f"{run.rounds} rounds" if run.rounds else "not reached"
            console.print(
                f"{len(done)}/{len(runs)}  {run.strategy}  {run.settings}  seed {run.seed}:  "
                f"{reached}, best {run.best:.1%}, {run.seconds:.0f} s",
                highlight=False,
            )
    rows = lines(done, chosen.rounds, chosen.seeds)
    table = Table(*HEADER, title=settings)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(markdown(rows, done, settings))
    console.print(f"written to {chosen.out}", highlight=False)


if __name__ == "__main__":
    main()
