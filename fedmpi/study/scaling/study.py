"""What a scaling study measures, and where its folder keeps what.

FOLDER/study.toml            this description
FOLDER/config.toml           the job that is measured
FOLDER/shards/w0004/         the data of four workers
FOLDER/w0004/job.sbatch      the script of that point, and what it leaves beside it:
FOLDER/w0004/machine.json    what its ranks ran on
FOLDER/w0004/run-1/          each repetition, a folder as any run has

A study is written once; its jobs are submitted, and its results read, as often as one likes.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import tomli_w

from fedmpi.config import Config, from_toml, require, require_choice
from fedmpi.data.files import atomic, reason
from fedmpi.decoding import converted
from fedmpi.errors import UsageError

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Study:
    """A scaling study: one job for each number of workers.

    Attributes:
        kind: strong: the clients are the same at every point; weak: every worker has as many.
        workers: of each point, rising. The first is the base case.
        repeats: runs of each point.
        ranks_per_node: most ranks that a node gets, the owner among them.
        cores_per_rank: of each rank, for its threads.
        minutes: time limit of a point's job.
        sbatch: more options of sbatch, such as "--partition=short".
    """

    kind: Kind
    workers: tuple[int, ...]
    repeats: int = 6
    ranks_per_node: int = 64
    cores_per_rank: int = 1
    minutes: int = 60
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, Kind)
        rising = all(a < b for a, b in pairwise((0, *self.workers)))
        require(bool(self.workers) and rising, "workers", self.workers, "rising positive numbers")
        require(1 <= self.repeats <= 1000, "repeats", self.repeats, "1 to 1000")
        require(self.ranks_per_node >= 1, "ranks_per_node", self.ranks_per_node, "at least 1")
        require(self.cores_per_rank >= 1, "cores_per_rank", self.cores_per_rank, "at least 1")
        require(self.minutes >= 1, "minutes", self.minutes, "at least 1")
        for option in self.sbatch:
            fits = option.startswith("-") and "\n" not in option
            require(fits, "sbatch", option, "an option of sbatch, such as --partition=short")

    def clients(self, workers: int, config: Config) -> int:
        """Clients of a point: all there are, or as many a worker as the largest point has."""
        if self.kind == "strong":
            return config.data.clients
        return config.data.clients * workers // self.workers[-1]


@dataclass(frozen=True)
class StudyFolder:
    """Where each file of a study is.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.toml"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def table(self) -> Path:
        """What `collect` finds, for pandas or a spreadsheet."""
        return self.path / "points.csv"

    def shards(self, workers: int) -> Path:
        return self.path / "shards" / f"w{workers:04}"

    def point(self, workers: int) -> Path:
        return self.path / f"w{workers:04}"

    def script(self, workers: int) -> Path:
        return self.point(workers) / "job.sbatch"

    def machine(self, workers: int) -> Path:
        return self.point(workers) / "machine.json"

    def run(self, workers: int, repeat: int) -> Path:
        return self.point(workers) / f"run-{repeat}"

    def runs(self, workers: int) -> list[Path]:
        """The repetitions that have begun, in their order."""
        found = self.point(workers).glob("run-*")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def save(self, study: Study) -> None:
        """Writes study.toml."""
        with atomic(self.study) as temporary:
            temporary.write_text(tomli_w.dumps(asdict(study)), encoding="utf-8")

    def load(self) -> tuple[Study, Config]:
        """The study and the job that it measures.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            table = tomllib.loads(self.study.read_text(encoding="utf-8"))
            study = converted(table, Study)
        except OSError as error:
            raise UsageError(
                f"cannot read {self.study}: {reason(error)}: `scaling.py write` makes a study"
            ) from None
        except (ValueError, msgspec.ValidationError) as error:
            raise UsageError(f"{self.study} is damaged: {error}") from None
        return study, from_toml(self.config)


def check(study: Study, config: Config) -> None:
    """Refuses a job that cannot be measured so.

    Raises:
        UsageError: says what would be right.
    """
    clients, most = config.data.clients, study.workers[-1]
    if config.data.path:
        raise UsageError(
            f"data.path = {config.data.path!r}: a study makes shards for each of its points: "
            "name a source"
        )
    if config.federated.target_accuracy:
        raise UsageError(
            "federated.target_accuracy: runs that may stop early cannot be compared: leave it out"
        )
    if config.federated.rounds < 2:
        raise UsageError(
            f"federated.rounds = {config.federated.rounds}: the first round does not count, so "
            "at least 2 are needed"
        )
    if study.kind == "weak" and clients % most:
        raise UsageError(
            f"data.clients = {clients} for {most} workers: weak scaling gives every worker "
            f"equally many clients: a multiple of {most} is needed"
        )
    if clients < most:
        raise UsageError(f"data.clients = {clients} for {most} workers: a worker needs a client")
