"""What a finished run, or one still going on, amounts to: tables and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.errors import DataError, UsageError
from fedmpi.federated.metrics import PHASES, RoundMetrics, Suspect
from fedmpi.spdz.traffic import total
from fedmpi.study import plot
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.outcome import lost_line, read_outcome
from fedmpi.study.run_folder import RunFolder
from fedmpi.study.summary import best_round, summary_line
from fedmpi.study.units import duration, score, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SPREAD_ROWS = 15
"""Rounds shown of a long run, besides the first, the last and the best."""


SUSPECTS = 20
"""Suspects shown; metrics.jsonl has them all."""


def report(folder: str | Path, console: Console) -> Path:
    """Prints a run's rounds, phases and totals, and draws report.png in its folder.

    Returns:
        The plot's path.

    Raises:
        UsageError: the folder is missing, is no run's, or has no round yet.
    """
    run = RunFolder(Path(folder))
    metrics = _read(run)
    console.print(_rounds_table(metrics))
    console.print(_phases_table(metrics))
    if any(m.traffic for m in metrics):
        console.print(_traffic_table(metrics))
    console.print(summary_line(metrics, rounds=len(metrics)), highlight=False)
    idle = sum(m.idle_seconds for m in metrics)
    if idle:
        share = sum(m.idle_cpu for m in metrics) / idle
        console.print(
            f"the owner took {100 * share:.1f} % of a core while its workers trained",
            highlight=False,
        )
    if metrics[-1].stopped:
        console.print(f"stopped: {metrics[-1].stopped}", highlight=False)
    if lost := lost_line([one for m in metrics for one in m.lost]):
        console.print(lost, highlight=False)
    outcome = read_outcome(run.outcome)
    if outcome and outcome.exit_status:
        console.print(f"did not reach its end: {outcome.reason}", highlight=False, markup=False)
    left_out = sum(len(m.excluded) for m in metrics)
    if left_out:
        console.print(f"client updates left out: {left_out} (named in {run.metrics.name})")
    if any(m.suspects for m in metrics):
        console.print(_suspects_table(metrics))
    dropped = sum(len(m.dropped) for m in metrics)
    if dropped:
        console.print(f"clients that dropped out: {dropped} (named in {run.metrics.name})")
    masks = sum(m.mask_seconds or 0.0 for m in metrics)
    if masks:
        share = masks / sum(m.seconds for m in metrics)
        console.print(f"masks of secure aggregation: {100 * share:.1f} % of the time")
    plot.report(metrics, run.report, title=run.path.resolve().name)
    return run.report


def shown_rounds(metrics: Sequence[RoundMetrics]) -> list[RoundMetrics]:
    """All rounds of a short run; of a long one the first, last, best and an even spread."""
    if len(metrics) <= SPREAD_ROWS + 3:
        return list(metrics)
    spread = [m for m in metrics if m.test_metric is not None] or metrics
    step = (len(spread) - 1) / (SPREAD_ROWS + 1)
    shown = {spread[round(k * step)].round for k in range(SPREAD_ROWS + 2)}
    shown |= {metrics[0].round, metrics[-1].round}
    best = best_round(metrics)
    return [m for m in metrics if m.round in shown or m is best]


def _read(run: RunFolder) -> list[RoundMetrics]:
    if not run.path.is_dir():
        raise UsageError(f"{run.path} is not a folder: expected a run's")
    if not run.metrics.exists():
        raise UsageError(f"{run.path} is not a run's folder: it has no {run.metrics.name}")
    metrics = read_metrics(run.metrics)
    if not metrics:
        raise DataError(f"{run.metrics} has no round yet: wait for the first one to end")
    return metrics


def _rounds_table(metrics: Sequence[RoundMetrics]) -> Table:
    name = metrics[0].metric
    table = _table("Rounds", "round", "clients", f"test {name}", "test loss", "train loss", "time")
    table.add_column("sent", justify="right")
    attacked = any(m.attack_success is not None for m in metrics)
    if attacked:
        table.add_column("backdoor", justify="right")
    private = any(m.epsilon is not None for m in metrics)
    if private:
        table.add_column("epsilon", justify="right")
    best = best_round(metrics)
    for m in shown_rounds(metrics):
        table.add_row(
            str(m.round),
            str(m.clients),
            score(m.metric, m.test_metric),
            "-" if m.test_loss is None else f"{m.test_loss:.4f}",
            "-" if m.train_loss is None else f"{m.train_loss:.4f}",
            duration(m.seconds),
            size(m.bytes_sent),
            *([score("accuracy", m.attack_success)] if attacked else []),
            *([] if not private else ["-" if m.epsilon is None else f"{m.epsilon:.3f}"]),
            style="bold" if m is best else None,
        )
    return table


def _phases_table(metrics: Sequence[RoundMetrics]) -> Table:
    table = _table("Phases", "phase", "time", "share", "median per round")
    total = sum(m.seconds for m in metrics)
    for phase in PHASES:
        times = [m.phases.get(phase, 0.0) for m in metrics]
        table.add_row(
            phase,
            duration(sum(times)),
            f"{100 * sum(times) / max(total, 1e-9):.1f} %",
            duration(statistics.median(times)),
        )
    median = statistics.median(m.seconds for m in metrics)
    table.add_section()
    table.add_row("round", duration(total), "100.0 %", duration(median))
    return table


def _traffic_table(metrics: Sequence[RoundMetrics]) -> Table:
    """What parties and dealer sent, by operator; each opening waits for the one before it."""
    table = _table("Secure computation", "operator", "calls", "openings", "between parties")
    table.add_column("from the dealer", justify="right")
    parts = [t for m in metrics for t in m.traffic]
    sums = [
        total([t for t in parts if t.operator == name], name)
        for name in {t.operator for t in parts}
    ]
    sums.sort(key=lambda t: -t.party_bytes - t.dealer_bytes)
    for t in (*sums, total(parts, "all")):
        if t.operator == "all":
            table.add_section()
        table.add_row(
            t.operator,
            f"{t.calls:,}",
            f"{t.openings:,}",
            size(t.party_bytes),
            size(t.dealer_bytes),
        )
    return table


def _suspects_table(metrics: Sequence[RoundMetrics]) -> Table:
    """How often each client was a suspect, the most often first."""
    table = _table("Suspects", "client", "rounds", "left out", "highest score")
    table.add_column("latest reason")
    of_client: dict[int, list[Suspect]] = {}
    for suspect in (s for m in metrics for s in m.suspects):
        of_client.setdefault(suspect.client, []).append(suspect)
    often = sorted(of_client, key=lambda c: (-len(of_client[c]), c))
    for client in often[:SUSPECTS]:
        found = of_client[client]
        table.add_row(
            str(client),
            str(len(found)),
            str(sum(s.excluded for s in found)),
            f"{max(s.score for s in found):.1f}",
            found[-1].reason,
        )
    if len(often) > SUSPECTS:
        table.add_row(f"and {len(often) - SUSPECTS} more")
    return table


def _table(title: str, first: str, *numbers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, justify="right" if first == "round" else "left")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
