"""What a person sees while a run goes on: a line per round, and on a terminal a bar."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedmpi.federated.metrics import Excluded, LostWorker, RoundMetrics, Suspect
from fedmpi.study.summary import summary_line
from fedmpi.study.units import duration, score, size

if TYPE_CHECKING:
    from rich.console import Console

NAMED_AT_MOST = 5
"""Excluded clients, or suspects, that a round names; metrics.jsonl has them all."""


class Progress:
    """Prints rounds as they end, and a summary once the block is left without an error.

    Under mpirun stdout is a pipe: the lines are the same, and each is flushed.
    """

    def __init__(self, console: Console, rounds: int, earlier: Sequence[RoundMetrics] = ()) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = console
        self._rounds = rounds
        self._seen = list(earlier)
        self._bar = Bar(
            "rounds",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("rounds", total=rounds, completed=len(earlier))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None and self._seen:
            self._print(summary_line(self._seen, self._rounds))

    def round(self, metrics: RoundMetrics) -> None:
        """Prints a round that has just ended."""
        self._seen.append(metrics)
        for line in (round_line(metrics, self._rounds), *notes(metrics)):
            self._print(line)
        self._bar.advance(self._task)

    def _print(self, line: str) -> None:
        # soft_wrap: a pipe has no width, and a wrapped line would be hard to grep.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._console.file.flush()


def round_line(metrics: RoundMetrics, rounds: int) -> str:
    """A round in one line of fixed columns."""
    test_loss = "-" if metrics.test_loss is None else f"{metrics.test_loss:.3f}"
    train_loss = "-" if metrics.train_loss is None else f"{metrics.train_loss:.3f}"
    share = metrics.phases.get("train", 0.0) / max(metrics.seconds, 1e-9)
    spent = () if metrics.epsilon is None else (f"eps {metrics.epsilon:.2f}",)
    return "  ".join(
        (
            f"round {metrics.round:>{len(str(rounds))}}/{rounds}",
            f"{metrics.metric} {score(metrics.metric, metrics.test_metric):>6}",
            f"loss {test_loss:>5}",
            f"train {train_loss}",
            f"{duration(metrics.seconds):>7} (train {100 * share:.0f} %)",
            size(metrics.bytes_sent),
            *spent,
        )
    )


def notes(metrics: RoundMetrics) -> list[str]:
    """What else a person should know of a round, a line each."""
    lines = [lost_worker_line(lost) for lost in metrics.lost]
    if metrics.excluded:
        lines.append(excluded_line(metrics.excluded))
    if metrics.suspects:
        lines.append(suspects_line(metrics.suspects))
    if metrics.trusted == 0:
        lines.append("  no update agrees with the owner's on its root set: the model stays")
    if metrics.attack_success is not None:
        share = score("accuracy", metrics.attack_success)
        lines.append(f"  backdoor: {share} of the rows with the trigger go to the target")
    if metrics.dropped or metrics.repeated:
        lines.append(dropped_line(metrics.dropped, metrics.repeated))
    if metrics.clip is not None:
        lines.append(f"  updates clipped to norm {metrics.clip:.4g}")
    if metrics.stopped:
        lines.append(f"  stopped: {metrics.stopped}")
    return lines


def lost_worker_line(lost: LostWorker) -> str:
    """A worker that has died, and what became of its clients."""
    words = [f"  lost: worker on rank {lost.rank} on {lost.host} ({lost.reason})"]
    if lost.moved:
        ranks = sorted({rank for _, rank in lost.moved})
        heirs = ", ".join(map(str, ranks))
        words.append(f"its {len(lost.moved)} clients go on on rank{'s' * (len(ranks) > 1)} {heirs}")
    if lost.lost:
        words.append(f"{len(lost.lost)} clients are lost, since nobody else can read their rows")
    return "; ".join(words)


def excluded_line(excluded: list[Excluded]) -> str:
    """The clients that a round left out, with their reasons."""
    named = [f"client {e.client} on rank {e.rank} ({e.reason})" for e in excluded[:NAMED_AT_MOST]]
    if len(excluded) > NAMED_AT_MOST:
        named.append(f"and {len(excluded) - NAMED_AT_MOST} more")
    return "  left out: " + ", ".join(named)


def suspects_line(suspects: list[Suspect]) -> str:
    """The clients that look like attackers, the most suspicious first."""
    ranked = sorted(suspects, key=lambda s: -s.score)
    named = [
        f"client {s.client} on rank {s.rank} ({s.reason}{'; left out' if s.excluded else ''})"
        for s in ranked[:NAMED_AT_MOST]
    ]
    if len(ranked) > NAMED_AT_MOST:
        named.append(f"and {len(ranked) - NAMED_AT_MOST} more")
    return "  suspects: " + ", ".join(named)


def dropped_line(dropped: list[int], repeated: int) -> str:
    """The clients that dropped out, and whether the round began anew without those lost."""
    named = ", ".join(map(str, dropped[:NAMED_AT_MOST]))
    if len(dropped) > NAMED_AT_MOST:
        named += f" and {len(dropped) - NAMED_AT_MOST} more"
    words = [f"client{'s' * (len(dropped) > 1)} {named} dropped out"] if dropped else []
    if repeated:
        words.append("too few were left to open the sum, so the others shared it anew")
    return "  " + "; ".join(words)
