"""What the runs of the systems come to: medians, quartiles, ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FEDMPI, PLAIN = "fedmpi", "plain"


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


def ratios(own: Summary, systems: Mapping[str, Summary]) -> dict[str, float]:
    plain, peer = systems.get(PLAIN), fastest_peer(systems)
    return {
        name: round(other.round / own.round, 3)
        for name, other in (("as_fast_as_plain", plain), ("as_fast_as_fastest_peer", peer))
        if other
    }


def circumstances(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """When, where and on what the runs were made, as each of them says."""
    found: dict[str, set[str]] = {}
    for line in lines:
        for key, value in line["circumstances"].items():
            found.setdefault(key, set()).add(str(value))
    return {key: " and ".join(sorted(values)) for key, values in found.items()}


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
