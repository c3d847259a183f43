"""A study's results as a table for a person, and as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.data.files import atomic
from fedmpi.federated.metrics import PHASES
from fedmpi.study.scaling.collect import Point, Ratio, Results
from fedmpi.study.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "kind", "workers", "nodes", "cores", "runs", "asked", "seconds", "low", "high", "confidence",
    "speed_up", "speed_up_low", "speed_up_high", "efficiency", "bytes_sent", *PHASES, "failures",
)  # fmt: skip


def show(results: Results, console: Console) -> None:
    """Prints the points, then what they were measured against, then what failed."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{results.kind} scaling")
    for name in ("workers", "nodes", "cores", "runs", "a round", "interval"):
        table.add_column(name, justify="right")
    for name in ("speed-up", "efficiency", "train", "sent"):
        table.add_column(name, justify="right")
    for point in results.points:
        table.add_row(*_row(results, point))
    console.print(table)
    for line in remarks(results):
        console.print(line, highlight=False, soft_wrap=True)


def remarks(results: Results) -> list[str]:
    """How to read the table: base case, statistics, crowded points, failures."""
    base = results.base
    lines = [_statistics(results)]
    if base.time:
        lines.append(
            f"base case: {base.workers} worker{'s' * (base.workers != 1)} and the owner, "
            f"{duration(base.time.median)} a round"
        )
    else:
        lines.append(f"no base case: none of the runs with {base.workers} workers ended")
    crowded = [str(p.workers) for p in results.points if p.crowded]
    if crowded:
        lines.append(f"* more workers than physical cores: {', '.join(crowded)}")
    for point in results.points:
        lines += [f"w{point.workers:04} {failure}" for failure in point.failures]
    return lines


def write_csv(results: Results, path: Path) -> None:
    """Writes a line for each point; empty where nothing was measured."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for point in results.points:
            writer.writerow(_fields(results, point))


def _statistics(results: Results) -> str:
    found = [point.time.confidence for point in results.points if point.time]
    least = f"{100 * min(found):.1f} %" if found else "none"
    rounds = results.config.federated.rounds
    return (
        f"time of a round: the median of {results.study.repeats} runs, each the median of its "
        f"rounds 2 to {rounds}; interval: of that median, nonparametric, at least {least}; phases: "
        "medians of the rounds"
    )


def _row(results: Results, point: Point) -> list[str]:
    time, machine = point.time, point.machine
    ended = f"{len(point.seconds)}" + (
        f" of {point.asked}" if len(point.seconds) < point.asked else ""
    )
    row = [
        f"{point.workers}{'*' if point.crowded else ''}",
        str(machine.nodes) if machine else "?",
        str(machine.cores) if machine else "?",
        ended,
    ]
    if time is None:
        return [*row, "failed", *["-"] * 5]
    return [
        *row,
        duration(time.median),
        f"{duration(time.low)} to {duration(time.high)}",
        _text(results.speed_up(point), "{:.2f}"),
        _text(results.efficiency(point), "{:.0%}"),
        duration(point.phases["train"]),
        size(point.bytes_sent),
    ]


def _text(ratio: Ratio | None, form: str) -> str:
    return form.format(ratio.value) if ratio else "-"


def _fields(results: Results, point: Point) -> dict[str, object]:
    time, machine = point.time, point.machine
    speed_up, efficiency = results.speed_up(point), results.efficiency(point)
    fields: dict[str, object] = {
        "kind": results.kind,
        "workers": point.workers,
        "runs": len(point.seconds),
        "asked": point.asked,
        "failures": "; ".join(point.failures),
    }
    if machine:
        fields |= {"nodes": machine.nodes, "cores": machine.cores}
    if time:
        fields |= {"seconds": time.median, "low": time.low, "high": time.high}
        fields |= {"confidence": time.confidence, "bytes_sent": point.bytes_sent, **point.phases}
    if speed_up and efficiency:
        fields |= {"speed_up": speed_up.value, "efficiency": efficiency.value}
        fields |= {"speed_up_low": speed_up.low, "speed_up_high": speed_up.high}
    return fields
