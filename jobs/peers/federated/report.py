"""What the runs of the systems come to: statistics, tables, files and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.peers.federated.workloads import WORKLOADS

if TYPE_CHECKING:
    from rich.table import Table

FEDMPI, PLAIN = "fedmpi", "plain"
SAME_ACCURACY = 0.02
"""Systems whose accuracies are farther apart than this have not trained the same."""

HEADER = (
    "system", "seconds a round (quartiles)", "as fast as plain", "as the fastest peer",
    "start-up s", "total s", "peak MiB", "accuracy", "runs",
)  # fmt: skip


class Summary(NamedTuple):
    """Of all runs of a workload on a system.

    Attributes:
        quartiles: seconds of a round, of the rounds after the first of all runs.
        startup: median of seconds from the launch to the end of the first round, less a round.
        total: median of seconds from the launch to the end.
        peak_mib: median of the largest sums of PSS.
        accuracy: median of those after the last round.
        runs: how many.
        others: the most that other processes kept busy beside a run, in cores.
        versions: of the last run.
    """

    quartiles: tuple[float, float, float]
    startup: float
    total: float
    peak_mib: float
    accuracy: float
    runs: int
    others: float
    versions: dict[str, str]

    @property
    def round(self) -> float:
        return self.quartiles[1]


Summaries = dict[str, dict[str, Summary]]
"""By workload and system, the fastest first."""


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of runs.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def summarise(lines: Sequence[Mapping[str, Any]]) -> Summaries:
    """What the lines of runs that ended well come to."""
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if "error" not in line:
            runs.setdefault((line["workload"], line["system"]), []).append(line)
    found: Summaries = {}
    for (workload, system), these in sorted(runs.items()):
        found.setdefault(workload, {})[system] = _summary(these)
    return {
        workload: dict(sorted(systems.items(), key=lambda item: item[1].round))
        for workload, systems in found.items()
    }


def not_measured(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Why the last run failed, by "system, workload", or by "system" if it never got so far."""
    reasons: dict[str, str] = {}
    for line in lines:
        name = ", ".join(filter(None, (line["system"], line.get("workload", ""))))
        if "error" in line:
            reasons[name] = line["error"]
        else:
            reasons.pop(name, None)
            reasons.pop(line["system"], None)
    return reasons


def fastest_peer(systems: Mapping[str, Summary]) -> Summary | None:
    peers = [s for name, s in systems.items() if name not in (FEDMPI, PLAIN)]
    return min(peers, key=lambda s: s.round, default=None)


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


def circumstances(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """When, where and on what the runs were made, as each of them says."""
    found: dict[str, set[str]] = {}
    for line in lines:
        for key, value in line["circumstances"].items():
            found.setdefault(key, set()).add(str(value))
    return {key: " and ".join(sorted(values)) for key, values in found.items()}


def write(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Summaries:
    """Writes table.md, results.json and, where something was measured, times.png."""
    summaries = summarise(lines)
    (folder / "table.md").write_text(markdown(lines))
    results = {
        "circumstances": circumstances(lines),
        "workloads": {
            workload: {name: own._asdict() | _ratios(own, systems) for name, own in systems.items()}
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
            axes.barh(names, widths, color=colours, **error)
            axes.invert_yaxis()
            axes.set_xlabel(what)
            axes.set_xlim(left=0)
            if axes is not panels[0]:
                axes.set_yticklabels([])
        panels[0].set_ylabel(workload)
    save(figure, path)


def _summary(runs: Sequence[Mapping[str, Any]]) -> Summary:
    def middle(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    later = [seconds for run in runs for seconds in _after_first(run)]
    low, median, high = (
        statistics.quantiles(later, n=4, method="inclusive") if (len(later) > 1) else later * 3
    )
    startups = [
        run["begun"] + run["rounds"][0] - statistics.median(_after_first(run)) for run in runs
    ]
    return Summary(
        quartiles=(low, median, high),
        startup=statistics.median(startups),
        total=middle("total"),
        peak_mib=middle("peak_mib"),
        accuracy=statistics.median(_last(run["accuracies"]) for run in runs),
        runs=len(runs),
        others=max(run["others"] for run in runs),
        versions=dict(runs[-1]["versions"]),
    )


def _after_first(run: Mapping[str, Any]) -> list[float]:
    rounds: list[float] = run["rounds"]
    return rounds[1:] or rounds


def _last(accuracies: Mapping[str, float]) -> float:
    return accuracies[max(accuracies, key=int)]


def _ratios(own: Summary, systems: Mapping[str, Summary]) -> dict[str, float]:
    plain, peer = systems.get(PLAIN), fastest_peer(systems)
    return {
        name: round(other.round / own.round, 3)
        for name, other in (("as_fast_as_plain", plain), ("as_fast_as_fastest_peer", peer))
        if other
    }
