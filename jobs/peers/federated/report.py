"""What the runs of the systems come to, as tables, files and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.peers.federated.summary import (
    FEDMPI,
    PLAIN,
    Summaries,
    Summary,
    circumstances,
    fastest_peer,
    not_measured,
    ratios,
    summarise,
)
from jobs.peers.federated.workloads import WORKLOADS

if TYPE_CHECKING:
    from rich.table import Table

SAME_ACCURACY = 0.02
"""Systems whose accuracies are farther apart than this have not trained the same."""

HEADER = (
    "system", "seconds a round (quartiles)", "as fast as plain", "as the fastest peer",
    "start-up s", "total s", "peak MiB", "accuracy", "runs",
)  # fmt: skip


def rows(systems: Mapping[str, Summary]) -> list[list[str]]:
    """The cells of a workload's table, a row for each system, under `HEADER`."""
    plain, peer = systems.get(PLAIN), fastest_peer(systems)
    table = []
    for name, own in systems.items():
        low, median, high = own.quartiles
        differs = plain and abs(own.accuracy - plain.accuracy) > SAME_ACCURACY
        table.append(
            [
                name,
                f"{median:.4f} ({low:.4f} to {high:.4f})",
                f"{plain.round / median:.2f}" if plain else "",
                f"{peer.round / median:.2f}" if peer else "",
                f"{own.startup:.1f}",
                f"{own.total:.1f}",
                f"{own.peak_mib:.0f}",
                f"{own.accuracy:.2%}" + (" (differs)" if differs else ""),
                str(own.runs),
            ]
        )
    return table


def title(workload: str) -> str:
    work = WORKLOADS[workload]
    return (
        f"{workload}: {work.model}, {work.clients} clients, {work.cohort} a round, "
        f"lr {work.lr:g}, {work.rounds} rounds"
    )


def rich_table(workload: str, systems: Mapping[str, Summary]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*HEADER, title=title(workload), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for cells in rows(systems):
        table.add_row(*cells, style="bold" if cells[0] == FEDMPI else "")
    return table


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """All tables, with what was measured where, and what was not measured."""
    summaries, reasons = summarise(lines), not_measured(lines)
    parts = ["; ".join(f"{key}: {value}" for key, value in circumstances(lines).items())]
    for workload, systems in summaries.items():
        table = [list(HEADER), ["---", *["---:"] * (len(HEADER) - 1)], *rows(systems)]
        parts.append(f"**{title(workload)}**")
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in table))
    parts.append("\n".join(f"- {line}" for line in versions(summaries)))
    if reasons:
        missing = [f"- {name}: {reason}" for name, reason in reasons.items()]
        parts.append("Not measured:\n\n" + "\n".join(missing))
    busiest = max((s.others for w in summaries.values() for s in w.values()), default=0.0)
    parts.append(f"Other processes kept up to {busiest:.2f} cores busy meanwhile.")
    return "\n\n".join(parts) + "\n"


def versions(summaries: Summaries) -> list[str]:
    """A line for each system: what it was, by name and version."""
    of_system = {name: s.versions for systems in summaries.values() for name, s in systems.items()}
    return [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items())
        for name, found in sorted(of_system.items())
    ]


def write(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Summaries:
    """Writes table.md, results.json and, where something was measured, times.png."""
    summaries = summarise(lines)
    (folder / "table.md").write_text(markdown(lines))
    results = {
        "circumstances": circumstances(lines),
        "workloads": {
            workload: {name: own._asdict() | ratios(own, systems) for name, own in systems.items()}
            for workload, systems in summaries.items()
        },
        "not_measured": not_measured(lines),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if summaries:
        draw(summaries, folder / "times.png")
    return summaries


def draw(summaries: Summaries, path: Path) -> None:
    """Draws a row of panels for each workload: a round, start-up, total and memory."""
    from fedmpi.study.plot import BLUE, GREY, SKY, new_figure, save

    figure = new_figure(11.0, 0.9 + 1.9 * len(summaries), "FedMPI beside its peers")
    grid = figure.subplots(len(summaries), 4, squeeze=False)
    for panels, (workload, systems) in zip(grid, summaries.items(), strict=True):
        own = list(systems.values())
        names = list(systems)
        colours = [{FEDMPI: BLUE, PLAIN: GREY}.get(name, SKY) for name in names]
        spread = [
            [s.round - s.quartiles[0] for s in own],
            [s.quartiles[2] - s.round for s in own],
        ]
        values = {
            "seconds a round": [s.round for s in own],
            "start-up (s)": [s.startup for s in own],
            "total (s)": [s.total for s in own],
            "peak memory (MiB)": [s.peak_mib for s in own],
        }
        for axes, (what, widths) in zip(panels, values.items(), strict=True):
            error = {"xerr": spread, "error_kw": {"lw": 1.0}} if axes is panels[0] else {}
            bars = axes.barh(names, widths, color=colours, **error)
            axes.bar_label(bars, [_three_digits(width) for width in widths], padding=4, fontsize=8)
            axes.set_xlim(0, 1.25 * max(widths))
            axes.invert_yaxis()
            axes.set_xlabel(what)
            if axes is not panels[0]:
                axes.set_yticklabels([])
        panels[0].set_ylabel(workload)
    save(figure, path)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
