"""What the runs of a study measured, point by point; what failed or is missing is said."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmpi.config import Config, from_toml
from fedmpi.data.files import reason
from fedmpi.errors import FedMPIError, UsageError
from fedmpi.federated.metrics import PHASES, RoundMetrics
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.run_folder import RunFolder
from fedmpi.study.scaling.interval import Interval, median_interval
from fedmpi.study.scaling.study import Kind, Study, StudyFolder


@dataclass(frozen=True)
class Machine:
    """What the ranks of a point ran on.

    Attributes:
        nodes: distinct hosts.
        cores: physical cores that the ranks may use, each counted once.
        launcher, library: what started the ranks, and their MPI.
    """

    nodes: int
    cores: int
    launcher: str
    library: str


@dataclass(frozen=True)
class Point:
    """The repetitions at one number of workers.

    Attributes:
        workers: their number; rank 0 comes on top.
        asked: repetitions that were asked for.
        seconds: of each that ended, the median time of a round, without the first round.
        phases: median seconds of each phase over the same rounds: nearly the parts of a typical
            round, without what happens once in a run (loading compiled code, the last evaluation).
            Empty if no repetition ended.
        bytes_sent: median bytes of a round, by all ranks together.
        failures: a sentence for each repetition that is missing, cut off or of another job.
        machine: what it ran on; None if it never began.
    """

    workers: int
    asked: int
    seconds: tuple[float, ...]
    phases: dict[str, float]
    bytes_sent: float
    failures: tuple[str, ...]
    machine: Machine | None

    @property
    def time(self) -> Interval | None:
        """Median and interval of the repetitions' seconds."""
        return median_interval(self.seconds) if self.seconds else None

    @property
    def crowded(self) -> bool:
        """More workers than physical cores: no speed-up can be expected from the last of them."""
        return self.machine is not None and self.workers > self.machine.cores


@dataclass(frozen=True)
class Ratio:
    """A speed-up or an efficiency, with the range that the intervals of both times leave."""

    value: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Ratio:
        return Ratio(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Results:
    """A study and what came out of it; the first point is the base case."""

    study: Study
    config: Config
    points: tuple[Point, ...]

    @property
    def kind(self) -> Kind:
        return self.study.kind

    @property
    def base(self) -> Point:
        return self.points[0]

    def speed_up(self, point: Point) -> Ratio | None:
        """Work done in a second, over that of the base case; None if either has no time.

        Weak scaling counts the work that has grown: w workers do w / w_base of it.
        """
        base, time = self.base.time, point.time
        if base is None or time is None:
            return None
        grown = point.workers / self.base.workers if self.kind == "weak" else 1.0
        if point is self.base:
            return Ratio(1.0, 1.0, 1.0)
        ratio = Ratio(base.median / time.median, base.low / time.high, base.high / time.low)
        return ratio * grown

    def efficiency(self, point: Point) -> Ratio | None:
        """The speed-up over the ideal one, w / w_base."""
        speed_up = self.speed_up(point)
        return speed_up and speed_up * (self.base.workers / point.workers)


def collect(folder: StudyFolder) -> Results:
    """Reads what the jobs of a study left.

    Raises:
        UsageError: the folder holds no study.
    """
    study, config = folder.load()
    points = tuple(_point(study, config, folder, workers) for workers in study.workers)
    return Results(study, config, points)


def _point(study: Study, config: Config, folder: StudyFolder, workers: int) -> Point:
    rounds: list[list[RoundMetrics]] = []
    failures = []
    expected = {folder.run(workers, k) for k in range(1, study.repeats + 1)}
    for path in sorted(expected | set(folder.runs(workers)), key=lambda p: (len(p.name), p.name)):
        try:
            rounds.append(_rounds(path, config, study.clients(workers, config)))
        except FedMPIError as error:
            failures.append(f"{path.name}: {error}")
    # The first round warms up memory and caches.
    warm = [m for run in rounds for m in run[1:]]
    return Point(
        workers=workers,
        asked=study.repeats,
        seconds=tuple(statistics.median(m.seconds for m in run[1:]) for run in rounds),
        phases={p: statistics.median(m.phases.get(p, 0.0) for m in warm) for p in PHASES}
        if warm
        else {},
        bytes_sent=statistics.median(m.bytes_sent for m in warm) if warm else 0.0,
        failures=tuple(failures),
        machine=_machine(folder.machine(workers)),
    )


def _rounds(path: Path, config: Config, clients: int) -> list[RoundMetrics]:
    """The rounds of a repetition that ended.

    Raises:
        FedMPIError: it did not, or was another job.
    """
    if not path.exists():
        raise UsageError("missing")
    files = RunFolder(path)
    found = from_toml(files.config)
    _same("data.clients", found.data.clients, clients)
    for key in ("model", "seed"):
        _same(key, getattr(found, key), getattr(config, key))
    for key in ("rounds", "fraction", "epochs", "batch_size", "eval_every"):
        _same(f"federated.{key}", getattr(found.federated, key), getattr(config.federated, key))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a line that was cut off shows as a missing round
        rounds = read_metrics(files.metrics)
    if len(rounds) < config.federated.rounds:
        raise UsageError(f"{len(rounds)} of {config.federated.rounds} rounds")
    return rounds


def _same(key: str, found: object, expected: object) -> None:
    if found != expected:
        raise UsageError(f"another job: {key} = {found!r} instead of {expected!r}")


def _machine(path: Path) -> Machine | None:
    """What `info --out` wrote.

    Raises:
        UsageError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        ranks = told["ranks"]
        cores = {(rank["host"], core) for rank in ranks for core in rank["physical_cores"]}
        nodes = len({rank["host"] for rank in ranks})
        return Machine(nodes, len(cores), told["mpi"]["launcher"], told["mpi"]["library"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {reason(error)}") from None


def labels(folders: Sequence[StudyFolder], given: Sequence[str]) -> list[str]:
    """A name for each study: those given, or the folders' own."""
    if given and len(given) != len(folders):
        raise UsageError(f"{len(given)} labels for {len(folders)} studies: one for each is needed")
    return list(given) or [folder.path.name for folder in folders]
