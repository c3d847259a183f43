"""The plot of `fedmpi bench owner`: time and memory by the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.study.plot import BLUE, GREEN, GREY, ORANGE, new_figure, save

if TYPE_CHECKING:
    from fedmpi.study.bench_owner import Point

COLOURS = {"tree": BLUE, "star": GREEN, "shares": ORANGE}


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Draws seconds and memory per round, all axes logarithmic, and a line of slope 1.

    Args:
        points: what was measured.
        path: the PNG to write.
        title: above the plot.
    """
    figure = new_figure(7.0, 6.0, title)
    time, memory = figure.subplots(2, sharex=True)
    counts = sorted({p.workers for p in points})
    for way in dict.fromkeys(p.way for p in points):
        line = sorted((p for p in points if p.way == way), key=lambda p: p.workers)
        style = {"color": COLOURS[way], "label": way, "lw": 1.6, "marker": "o", "ms": 4}
        workers = [p.workers for p in line]
        time.loglog(workers, [1e3 * (p.send + p.gather) for p in line], **style)
        memory.loglog(workers, [p.memory_bytes / 2**20 for p in line], **style)
    last = max(points, key=lambda p: (p.workers, -p.send - p.gather))
    slope = 1e3 * (last.send + last.gather) / last.workers
    time.loglog(counts, [slope * n for n in counts], color=GREY, ls=":", label="linear")
    time.set_ylabel("owner's time per round (ms)")
    memory.set_ylabel("peak memory beyond start (MiB)")
    memory.set_xlabel("workers")
    time.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)
