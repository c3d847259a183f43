"""What a run does, what goes wrong in it, and where: drawn from the number of the run alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.launch import Launcher, launchers

ROUNDS = 4
CONFIGURATIONS: dict[str, list[str]] = {
    "clear": [],
    "star": ["--topology=star", "--eval-every=2"],
    "masked": ["--secure.kind=shares", "--dropout=0.2"],
    "scaffold": ["--strategy.kind=scaffold"],
    "fedadam": ["--strategy.kind=fedadam", "--strategy.server-lr=0.01"],
    "private": ["--privacy.kind=central", "--privacy.noise-multiplier=1.0"],
    "budget": [
        "--privacy.kind=central",
        "--privacy.noise-multiplier=1.0",
        "--privacy.epsilon=20",
    ],
    "target": ["--target-accuracy=0.5"],
}
"""Options of each; all train the digits on 8 clients for ROUNDS rounds, but for those of ENDS."""
ENDS = {"budget": 2, "target": 2}
"""Rounds after which these end by themselves."""
COMMON = [
    "--source=digits", "--clients=8", f"--rounds={ROUNDS}", "--epochs=1", "--lr=0.1",
    "--fraction=0.75", "--checkpoint.every-rounds=1", "--silence-seconds=8", "--name=it",
]  # fmt: skip

ON_WORKERS = ("SetUp", "Broadcast", "Train", "Train:done", "Report", "Report:done", "KeepMemory")
ON_THE_OWNER = ("SetUp", "Broadcast", "Train", "Report", "evaluate", "checkpoint", "model")
ONCE = ("SetUp", "model")
"""Points that belong to no round."""
ON_THE_WIRE = ("drop", "duplicate", "corrupt")
KINDS = ("kill", "kill", "kill and flip", "raise", "signal", "stop", "delay", "fill", *ON_THE_WIRE)
"""Kinds of faults by how often they are drawn; `flip` is a bit of the newest checkpoint."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        number: from which all else is drawn.
        configuration: a key of CONFIGURATIONS.
        launcher: of the run; None: one process.
        ulfm: started so that the others survive a dead worker.
        ranks: owner included; in one process all of them but one are threads.
        again: ranks of the launch that resumes it.
        kind: of the fault.
        fault: as FEDMPI_FAULTS has it.
    """

    number: int
    configuration: str
    launcher: Launcher | None
    ulfm: bool
    ranks: int
    again: int
    kind: str
    fault: str

    @property
    def options(self) -> list[str]:
        """Of fedmpi's command line, the same whatever the ranks."""
        sealed = ["--secure-transport"] if self.kind in ON_THE_WIRE else []
        return [*COMMON, *CONFIGURATIONS[self.configuration], *sealed]

    def __str__(self) -> str:
        launcher = self.launcher.name if self.launcher else "one process"
        name = f"{launcher} with ULFM" if self.ulfm else launcher
        return f"run {self.number}: {self.configuration}, {self.ranks} ranks, {name}, {self.fault}"


def draw(number: int, full_disks: bool) -> Case:
    """The case of a number.

    Args:
        number: of the run.
        full_disks: a small file system can be mounted to be filled.
    """
    drawn = random.Random(f"torture {number}")
    kind = drawn.choice(KINDS if full_disks else [kind for kind in KINDS if kind != "fill"])
    configuration = drawn.choice(list(CONFIGURATIONS))
    found = launchers()
    launcher = drawn.choice([*(found[name] for name in sorted(found)), None])
    ulfm = launcher is not None and launcher.name == "openmpi" and drawn.random() < 0.5
    ranks, again = drawn.choice((2, 3, 4)), drawn.choice((2, 3, 4))
    if kind == "stop" and launcher is None:
        kind = "delay"  # a process that is stopped alone is one that a person has suspended
    rank = 0 if kind == "fill" else drawn.randrange(ranks)
    if kind == "stop":
        rank = max(rank, 1)  # workers wait for a day for an owner that is suspended
    point = drawn.choice(ON_WORKERS if rank else ON_THE_OWNER)
    if point == "KeepMemory" and configuration != "scaffold":
        point = "Train"
    what, number_of_round = kind.split(" ", 1)[0], drawn.randint(1, ENDS.get(configuration, ROUNDS))
    fault = f"{what} rank={rank} at={point}"
    if point not in ONCE:
        fault += f" round={number_of_round}"
    if kind == "delay":
        fault += " seconds=2"
    return Case(number, configuration, launcher, ulfm, ranks, again, kind, fault)
