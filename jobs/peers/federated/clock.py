"""How every script is called, how it times its rounds, and the one JSON line that it prints.

A round begins where the one before it ended, or where its evaluation ended, and lasts until the
new global model is there. So all that a system does between rounds counts, and evaluation, which
is ours and the same for all, does not. `fedmpi run` counts its rounds in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from workloads import WORKLOADS, Workload

LAUNCHED = "PEERS_LAUNCHED"
"""The environment variable with the time, in seconds since 1970, at which a run was launched."""

os.environ.setdefault(LAUNCHED, str(time.time()))


def arguments(description: str | None) -> tuple[argparse.Namespace, Workload]:
    """The command line (`workload`, `data`, `rounds`, `threads`) and the workload that it names."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's IDX files")
    parser.add_argument("--rounds", type=int, default=0, help="0: as the workload has")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, in each process")
    chosen = parser.parse_args()
    work = WORKLOADS[chosen.workload]
    return chosen, work._replace(rounds=chosen.rounds or work.rounds)


class Clock:
    """Times the rounds of one run, and has the model evaluated when that is due.

    Args:
        peer: its name.
        workload: its name.
        work: what is trained.
    """

    def __init__(self, peer: str, workload: str, work: Workload) -> None:
        self.work = work
        self.rounds: list[float] = []
        self._line: dict[str, object] = {"peer": peer, "workload": workload}
        self._accuracies: dict[int, float] = {}

    @property
    def begun(self) -> bool:
        return "begun" in self._line

    def begin(self) -> None:
        """The first round begins."""
        self._line["begun"] = time.time() - float(os.environ[LAUNCHED])
        self._mark = time.perf_counter()

    def round_done(self, accuracy: Callable[[], float]) -> None:
        """A round has ended; its model is evaluated now if it is due."""
        self.rounds.append(time.perf_counter() - self._mark)
        number = len(self.rounds)
        if number % self.work.eval_every == 0 or number == self.work.rounds:
            self._accuracies[number] = accuracy()
        self._mark = time.perf_counter()

    def report(self, *packages: str) -> None:
        """Prints the line; `packages` are those of the environment whose versions belong to it."""
        versions = {name: version(name) for name in (*packages, "torch")}
        versions["python"] = platform.python_version()
        self._line |= {
            "rounds": [round(seconds, 6) for seconds in self.rounds],
            "accuracies": self._accuracies,
            "versions": versions,
        }
        print(json.dumps(self._line), flush=True)
