"""The plot of scaling studies: time, speed-up, efficiency, phases and bytes by workers.

As Hoefler and Belli (Scientific Benchmarking of Parallel Computing Systems, SC'15) ask: times and
not only ratios, medians with intervals, the base case in words, the ideal as a bound, and nothing
that failed left out without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmpi.federated.metrics import PHASES
from fedmpi.study.plot import BLUE, GREEN, ORANGE, PHASE_COLOURS, PURPLE, new_figure, save
from fedmpi.study.scaling.collect import Point, Ratio, Results
from fedmpi.study.units import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
FAILED = "#D55E00"


def draw(studies: Sequence[Results], names: Sequence[str], path: Path, title: str) -> None:
    """Draws studies of one kind over each other.

    Args:
        studies: at most four.
        names: of the studies, for the legend.
        path: the PNG to write.
        title: above the plot.
    """
    figure = new_figure(10.0, 6.4, title)
    grid = figure.subplots(2, 3, sharex=True)
    (time, speed_up, efficiency), (phases, sent, words) = grid
    workers = sorted({point.workers for study in studies for point in study.points})
    place = {w: float(k) for k, w in enumerate(workers)}
    for k, study in enumerate(studies):
        shift = 0.08 * (k - (len(studies) - 1) / 2)
        colour = COLOURS[k % len(COLOURS)]
        _draw_times(time, study, place, shift, colour)
        _draw_ratios(speed_up, efficiency, study, place, shift, colour)
        _draw_bars(phases, sent, study, place, (k, len(studies)), colour)
    _draw_ideal(time, speed_up, efficiency, studies[0], place)
    _label(time, speed_up, efficiency, phases, sent, place)
    _draw_words(words, studies, names)
    save(figure, path)


def _draw_times(
    axes: Axes, study: Results, place: dict[int, float], shift: float, colour: str
) -> None:
    times = [(p, p.time) for p in study.points if p.time]
    x = [place[p.workers] + shift for p, _ in times]
    axes.plot(x, [t.median for _, t in times], color=colour, lw=1.2)
    for point, t in times:
        ratio = Ratio(t.median, t.low, t.high)
        _draw_point(axes, point, place[point.workers] + shift, ratio, colour)
    # A point without a time stands at the bottom, as a cross.
    for point in study.points:
        if point.time is None:
            axes.plot(
                place[point.workers] + shift,
                0.03,
                "x",
                color=FAILED,
                ms=8,
                mew=2,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )


def _draw_ratios(
    speed_up: Axes,
    efficiency: Axes,
    study: Results,
    place: dict[int, float],
    shift: float,
    colour: str,
) -> None:
    for axes, ratio_of in ((speed_up, study.speed_up), (efficiency, study.efficiency)):
        scale = 100.0 if axes is efficiency else 1.0
        found = [(p, r * scale) for p in study.points if (r := ratio_of(p))]
        x = [place[p.workers] + shift for p, _ in found]
        axes.plot(x, [r.value for _, r in found], color=colour, lw=1.2)
        for point, ratio in found:
            _draw_point(axes, point, place[point.workers] + shift, ratio, colour)


def _draw_point(axes: Axes, point: Point, x: float, ratio: Ratio, colour: str) -> None:
    """A filled mark where each worker has a core, a hollow one where not."""
    axes.errorbar(
        x,
        ratio.value,
        yerr=[[ratio.value - ratio.low], [ratio.high - ratio.value]],
        fmt="o",
        ms=5,
        color=colour,
        mfc="white" if point.crowded else colour,
        capsize=3,
        lw=1.2,
        zorder=3,
    )


def _draw_bars(
    phases: Axes,
    sent: Axes,
    study: Results,
    place: dict[int, float],
    which: tuple[int, int],
    colour: str,
) -> None:
    """Bars of the k-th of n studies, side by side at each number of workers."""
    k, n = which
    width = 0.8 / n
    for point in study.points:
        if not point.phases:
            continue
        x = place[point.workers] + width * (k - (n - 1) / 2)
        floor = 0.0
        for phase in PHASES:
            height = point.phases[phase]
            phases.bar(x, height, 0.92 * width, floor, color=PHASE_COLOURS[phase], lw=0)
            floor += height
        if n > 1:  # a strip in the study's colour tells whose bar it is
            phases.bar(x, 0.02, 0.92 * width, -0.03, color=colour,
                   transform=phases.get_xaxis_transform(), clip_on=False)  # fmt: skip
        sent.bar(x, point.bytes_sent / 1e6, 0.92 * width, color=colour, lw=0)


def _draw_ideal(
    time: Axes, speed_up: Axes, efficiency: Axes, study: Results, place: dict[int, float]
) -> None:
    base = study.base
    x = list(place.values())
    growth = [w / base.workers for w in place]
    style: dict[str, Any] = {"color": "black", "lw": 1, "ls": ":", "zorder": 1}
    if base.time:
        ideal = [base.time.median / (g if study.kind == "strong" else 1.0) for g in growth]
        time.plot(x, ideal, **style)
    speed_up.plot(x, growth, **style)
    efficiency.plot(x, [100.0] * len(x), **style)


def _label(
    time: Axes, speed_up: Axes, efficiency: Axes, phases: Axes, sent: Axes, place: dict[int, float]
) -> None:
    from matplotlib.lines import Line2D

    for axes, name in (
        (time, "time of a round (s)"),
        (speed_up, "speed-up"),
        (efficiency, "efficiency (%)"),
        (phases, "time of a round by phase (s)"),
        (sent, "sent by all ranks in a round (MB)"),
    ):
        axes.set_title(name, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(place.values()), [str(w) for w in place])
        axes.set_xlim(-0.6, len(place) - 0.4)
        axes.tick_params(labelbottom=True)
    phases.tick_params(axis="x", pad=8)  # below the strips of colour
    for axes in (phases, sent):
        axes.set_xlabel("workers")
    efficiency.set_xlabel("workers")
    efficiency.set_ylim(0, max(110.0, efficiency.get_ylim()[1]))
    speed_up.legend(
        handles=[
            Line2D([], [], color="black", lw=1, ls=":", label="ideal"),
            Line2D([], [], color="grey", marker="o", ls="", label="a core for each worker"),
            Line2D([], [], color="grey", marker="o", mfc="white", ls="",
                   label="more workers than cores"),
        ],
        frameon=False,
        fontsize=8,
        loc="upper left",
    )  # fmt: skip


def _draw_words(axes: Axes, studies: Sequence[Results], names: Sequence[str]) -> None:
    """The setting and the phases' colours, in the place of a sixth panel."""
    from matplotlib.patches import Patch

    handles = [Patch(color=PHASE_COLOURS[phase], label=phase) for phase in PHASES]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="lower left", ncols=3,
                bbox_to_anchor=(-0.05, -0.06))  # fmt: skip
    axes.set_axis_off()
    y = 1.0
    for k, (study, name) in enumerate(zip(studies, names, strict=True)):
        lines = [f"{line}\n" for line in _setting(study)]
        axes.text(0.0, y, name, color=COLOURS[k % len(COLOURS)], weight="bold", fontsize=9,
                  va="top", transform=axes.transAxes, parse_math=False)  # fmt: skip
        axes.text(0.0, y - 0.075, "".join(lines), fontsize=8, va="top",
                  transform=axes.transAxes, parse_math=False)  # fmt: skip
        y -= 0.1 + 0.06 * len(lines)


def _setting(study: Results) -> list[str]:
    """Lines that say what was measured, on what, against what, and what failed."""
    job, base = study.config, study.base
    clients = f"{job.data.clients} clients"
    if study.kind == "weak":
        clients = f"{job.data.clients // study.study.workers[-1]} clients a worker"
    machines = [p.machine for p in study.points if p.machine]
    lines = [f"{job.model}, {Path(job.data.source).stem}, {clients}"]
    if machines:
        most = max(machines, key=lambda machine: machine.cores)
        library = " ".join(most.library.replace(":", " ").split()[:3])
        lines.append(f"{most.nodes} host{'s' * (most.nodes != 1)}, {most.cores} physical cores")
        lines.append(f"{most.launcher}, {library}")
    found = [p.time.confidence for p in study.points if p.time]
    if base.time and found:
        time = duration(base.time.median)
        lines.append(f"base: {base.workers} worker{'s' * (base.workers != 1)}, {time} a round")
        lines.append(f"median of {study.study.repeats} runs, {100 * min(found):.0f} % intervals")
    for point in study.points:
        if point.failures:
            lines.append(f"w{point.workers:04}: {len(point.seconds)} of {point.asked} runs ended")
    return lines
