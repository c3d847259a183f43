"""Every defence under every attack: accuracy in one table.

    python -m jobs.defences                                     (make defences)
    python -m jobs.defences --only-attacks alie ipm --only-defences none krum --seeds 3
    python -m jobs.defences --partition dirichlet --alpha 1

mnist5k on 20 clients, of which 4 attack; all train in every round (2NN, E = 2, B = 20, lr 0.3
times 0.95 a round), with every kind of `[federated.robust]` and with detection that leaves suspects
out. Every cell is a job of its own on one worker, by default two at a time; accuracy is that of the
1,000 held-out digits (FLTrust trains on some of them) after the last round, the mean over the
seeds. Of a backdoor the share of digits with the trigger that go to the target follows in brackets.
`--out` writes the table as Markdown too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from fedmpi.config import AttackKind, DetectConfig, Recipe, RobustKind, from_mapping
from fedmpi.errors import FedMPIError
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.shards import prepare

CLIENTS = 20
TRAINING: dict[str, Any] = {
    "fraction": 1.0,
    "epochs": 2,
    "batch_size": 20,
    "lr": 0.3,
    "lr_decay": 0.95,  # or the last rounds go up and down by more than defences differ
    "eval_every": 1_000_000,  # after the last round
}

ATTACKS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in get_args(AttackKind)},
    "alie z=1.5": {"kind": "alie", "z": 1.5},
    "ipm eps=10": {"kind": "ipm", "epsilon": 10.0},
}
"""Columns: all kinds with the papers' options, and two colluding ones that go further."""

DEFENCES: dict[str, dict[str, Any]] = {
    kind: {"robust": {"kind": kind}} for kind in get_args(RobustKind)
}
if "exclude" in {f.name for f in fields(DetectConfig)}:
    DEFENCES["detection"] = {"detect": {"score": True, "exclude": True}}


class Cell(NamedTuple):
    """One job: a defence under an attack with a seed."""

    defence: str
    attack: str
    seed: int


class Found(NamedTuple):
    """What came of it: accuracy, success of a backdoor, and why the job ended early if it did."""

    accuracy: float
    opened: float | None
    failed: str = ""


def play(task: tuple[Cell, int, str]) -> tuple[Cell, Found]:
    """Plays one job on one in-process worker."""
    cell, rounds, folder = task
    table = {
        "seed": cell.seed,
        "model": "2nn",
        "data": {"path": folder},
        "federated": {**TRAINING, "rounds": rounds, **DEFENCES[cell.defence]},
        "attack": ATTACKS[cell.attack],
        "compute": {"device": "cpu"},
    }
    seen: list[RoundMetrics] = []
    try:
        with in_process_crew(1) as crew:
            job = Job(from_mapping(table, f"{cell.defence} under {cell.attack}"), crew)
            job.run(Observer(seen.append, lambda clients: None))
    except FedMPIError as error:  # a model that has diverged, say: a result too
        return cell, Found(0.0, None, str(error))
    return cell, Found(seen[-1].test_metric or 0.0, seen[-1].attack_success)


def play_all(cells: Sequence[Cell], rounds: int, folder: str, processes: int) -> dict[Cell, Found]:
    """Plays all jobs, some at a time."""
    found: dict[Cell, Found] = {}
    console = Console(stderr=True)
    bar = Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with get_context("spawn").Pool(processes) as pool, bar:
        task = bar.add_task("jobs", total=len(cells))
        tasks = [(cell, rounds, folder) for cell in cells]
        for cell, result in pool.imap_unordered(play, tasks):
            found[cell] = result
            bar.advance(task)
            if result.failed or not console.is_terminal:
                said = result.failed or cell_text([result])
                console.print(f"{cell.defence} under {cell.attack}: {said}", markup=False)
    return found


def cell_text(results: Iterable[Found]) -> str:
    """Accuracy in percent, and a backdoor's success in brackets."""
    results = list(results)
    text = f"{100 * fmean(r.accuracy for r in results):.1f}"
    opened = [r.opened for r in results if r.opened is not None]
    if opened:
        text += f" ({100 * fmean(opened):.0f})"
    return text if not any(r.failed for r in results) else "fails"


def rows_of(
    found: dict[Cell, Found], attacks: Sequence[str], defences: Sequence[str], seeds: Sequence[int]
) -> list[list[str]]:
    """The table's rows, its first one the names of the columns."""
    rows = [["defence", *attacks]]
    for defence in defences:
        cells = [[found[Cell(defence, attack, seed)] for seed in seeds] for attack in attacks]
        rows.append([defence, *map(cell_text, cells)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--only-attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--only-defences", nargs="+", choices=DEFENCES, default=list(DEFENCES))
    parser.add_argument("--partition", choices=("iid", "dirichlet"), default="iid")
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet distribution")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a file for the table as Markdown")
    chosen = parser.parse_args()
    attacks, defences, seeds = chosen.only_attacks, chosen.only_defences, range(chosen.seeds)
    cells = [Cell(d, a, s) for s in seeds for a in attacks for d in defences]
    begun = time.perf_counter()
    with TemporaryDirectory(prefix="fedmpi-defences-") as folder:
        recipe = Recipe(clients=CLIENTS, partition=chosen.partition, alpha=chosen.alpha)
        prepare(recipe, 1, Path(folder) / "shards", None)
        found = play_all(cells, chosen.rounds, str(Path(folder) / "shards"), chosen.processes)
    rows = rows_of(found, attacks, defences, seeds)
    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(rows[0]):
        heading = name.replace("_", "\n").replace(" ", "\n")
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 120)  # a pipe has no width, and the table has twelve columns
    console.print(table)
    console.print(
        f"{len(cells)} jobs of {chosen.rounds} rounds in {time.perf_counter() - begun:.0f} s"
    )
    if chosen.out:
        chosen.out.write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
