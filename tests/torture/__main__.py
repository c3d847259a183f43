"""Runs that go wrong at random, and have to end right.

    python -m tests.torture --runs 200          (make torture, about twenty minutes)
    python -m tests.torture --first 17 --runs 1       run 17 again

Every run has one fault (see `fedmpi.testing.faults`). It has to finish with the bits of a run
without faults, or to stop within seconds, with a status that is not 0 and a sentence; then
`--resume` on another number of ranks has to give these bits. No process, temporary file or key
may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fedmpi.federated.model_file import load_model
from fedmpi.testing.faults import flip
from tests.faults.jobs import Job, started
from tests.launch import Launcher, launchers
from tests.torture.cases import Case, draw

HUNG = 120.0
"""Seconds after which a run hangs, on a machine that does nothing else."""
SILENCE = 8.0
"""As `cases.COMMON` has it: a stopped rank is noticed after this."""
PROMISED = 10.0
"""Seconds in which a job ends once a fault has been noticed."""
ATTEMPTS = 3
RUN = Path("runs") / "it"


class WentWrong(AssertionError):
    """A run that did not end as it has to."""


@dataclass
class Ended:
    """A launch that has ended; `seconds` from its fault, 0 if there was none."""

    status: int
    stderr: str
    seconds: float


@dataclass
class Row:
    """What came of the runs with one kind of fault."""

    runs: int = 0
    untouched: int = 0
    finished: int = 0
    resumed: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def launch(
    launcher: Launcher | None, ranks: int, arguments: list[str], ulfm: bool, fault: str
) -> Ended:
    """Runs fedmpi in the working folder to the end of its last process."""
    if launcher is None and "--resume" not in arguments:
        arguments = [*arguments, f"--workers={ranks - 1}"]
    elif launcher is None:
        arguments = [*arguments, "--workers", str(ranks - 1)]
    env = {"FEDMPI_FAULTS": fault or None, "OMP_NUM_THREADS": "1", **_own_home()}
    options = ["--with-ft", "ulfm"] if ulfm else []
    with started(launcher, ranks, "run", *arguments, env=env, options=options) as job:
        return _watch(job)


def _own_home() -> dict[str, str]:
    """A home that no other job writes its keys into; what is kept there for speed stays."""
    home, mine = Path.home(), Path("home").absolute()
    mine.mkdir(exist_ok=True)
    cache = os.environ.get("FEDMPI_CACHE", str(home / ".cache" / "fedmpi"))
    fonts = os.environ.get("MPLCONFIGDIR", str(home / ".config" / "matplotlib"))
    return {"HOME": str(mine), "FEDMPI_CACHE": cache, "MPLCONFIGDIR": fonts}


def _watch(job: Job) -> Ended:
    begun, at_fault = time.monotonic(), 0.0
    while job.process.poll() is None or job.processes():
        now = time.monotonic()
        if not at_fault and "fault: " in job.printed()[1]:
            at_fault = now
        if now - begun > HUNG:
            raise WentWrong(f"hangs after {HUNG:.0f} s: {job.printed()[1][-2000:]}")
        time.sleep(0.05)
    seconds = time.monotonic() - at_fault if at_fault else 0.0
    return Ended(job.process.returncode, job.printed()[1], seconds)


def play(case: Case, reference: dict[str, torch.Tensor]) -> tuple[str, float]:
    """Runs a case; returns what it did (untouched, finished, resumed) and the seconds to its stop.

    Raises:
        WentWrong: it did not end as it has to.
    """
    fault = f"{case.fault} path=runs" if case.kind == "fill" else case.fault
    ended = launch(case.launcher, case.ranks, case.options, case.ulfm, fault)
    told = "fault: " in ended.stderr
    if ended.status == 0 and (RUN / "model.h5").exists():
        _same(reference)
        return ("finished" if told else "untouched"), 0.0
    if case.ulfm and ended.status == 0:
        # That mpirun always says 0 when a rank died; the sentence is what counts.
        ended.status = 1
    if ended.status == 0:
        raise WentWrong(f"status 0 and no model: {ended.stderr[-2000:]}")
    if not told:
        raise WentWrong(f"stopped without a fault: {ended.stderr[-2000:]}")
    alone = case.launcher is None and case.kind.startswith("kill")  # whose shell says "Killed"
    if "fedmpi: rank " not in ended.stderr and not alone:
        raise WentWrong(f"no sentence: {ended.stderr[-2000:]}")
    noticed = SILENCE if case.kind in ("stop", "drop", "duplicate") else 0.0
    if ended.seconds > noticed + PROMISED:
        raise WentWrong(f"took {ended.seconds:.1f} s to stop: {ended.stderr[-2000:]}")
    outcome = RUN / "outcome.json"
    if (
        (RUN / "model.h5").exists()
        and outcome.exists()
        and '"exit_status": 0' in outcome.read_text()
    ):
        _same(reference)  # a worker has not heard that all is done
        return "finished", ended.seconds
    (Path("runs") / "filler").unlink(missing_ok=True)
    if case.kind == "kill and flip":
        for newest in sorted((RUN / "checkpoints").glob("round-??????.h5"))[1:][-1:]:
            flip(newest)
    _resume(case)
    _same(reference)
    return "resumed", ended.seconds


def _resume(case: Case) -> None:
    if (RUN / "config.toml").exists():
        launcher = case.launcher
        again = launch(launcher, case.again, ["--resume", str(RUN)], False, "")
    else:
        shutil.rmtree(RUN, ignore_errors=True)
        again = launch(case.launcher, case.again, case.options, False, "")
    if again.status:
        raise WentWrong(f"did not resume (status {again.status}): {again.stderr[-2000:]}")


def _same(reference: dict[str, torch.Tensor]) -> None:
    found = load_model(RUN / "model.h5")
    if not all(torch.equal(found[name], tensor) for name, tensor in reference.items()):
        raise WentWrong("another model than that of a run without faults")
    left = [path for path in Path().rglob("*") if ".tmp" in path.name]
    left += list(Path("home").glob(".fedmpi-key-*"))
    if left:
        raise WentWrong(f"left behind: {left}")


@contextlib.contextmanager
def folder(small: bool) -> Iterator[None]:
    """A new working folder whose `runs` is a file system of 16 MiB if that is asked for."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fedmpi-torture-") as name:
        here = Path(name) / "here"
        (here / "runs").mkdir(parents=True)
        if small:
            mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(here / "runs")]
            subprocess.run(mount, check=True)
        os.chdir(here)
        try:
            yield
        finally:
            os.chdir(before)
            if small:
                subprocess.run(["umount", str(here / "runs")], check=True)


def can_mount() -> bool:
    """Whether a small file system can be mounted."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError), folder(small=True):
        return True
    return False


def references(cases: list[Case]) -> dict[str, dict[str, torch.Tensor]]:
    """The model of each configuration, of a run without faults on one process."""
    found = {}
    for case in cases:
        if case.configuration not in found:
            with folder(small=False):
                plain = [option for option in case.options if option != "--secure-transport"]
                ended = launch(None, 3, plain, False, "")
                assert ended.status == 0, ended.stderr
                found[case.configuration] = load_model(RUN / "model.h5")
    return found


def torture(first: int, runs: int, console: Console) -> dict[str, Row]:
    """Plays cases one after another; what came of them by kind of fault."""
    full_disks = can_mount()
    cases = [draw(number, full_disks) for number in range(first, first + runs)]
    right = references(cases)
    rows: defaultdict[str, Row] = defaultdict(Row)
    for case in cases:
        row = rows[case.kind]
        row.runs += 1
        begun = time.monotonic()
        try:
            with folder(small=case.kind == "fill"):
                what, seconds = play(case, right[case.configuration])
        except WentWrong as wrong:
            row.wrong.append(f"{case}: {wrong}")
            console.print(f"{case}: [bold red]WRONG[/]: {wrong}", highlight=False)
        else:
            setattr(row, what, getattr(row, what) + 1)
            if seconds:
                row.seconds.append(seconds)
            took = time.monotonic() - begun
            console.print(f"{case}: {what}, {took:.0f} s", highlight=False, soft_wrap=True)
    return dict(rows)


def table_of(rows: dict[str, Row]) -> Table:
    """The table: a line for each kind of fault, and one for all."""
    table = Table(
        "fault", "runs", "not reached", "finished", "stopped, resumed", "seconds to stop", "wrong"
    )
    for kind, row in sorted(rows.items()):
        seconds = f"{max(row.seconds):.1f}" if row.seconds else "-"
        counts = (row.runs, row.untouched, row.finished, row.resumed)
        table.add_row(kind, *map(str, counts), seconds, str(len(row.wrong)))
    total = [
        sum(getattr(row, name) for row in rows.values())
        for name in ("runs", "untouched", "finished", "resumed")
    ]
    wrong = sum(len(row.wrong) for row in rows.values())
    table.add_row("all", *map(str, total), "", str(wrong), style="bold")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    chosen = parser.parse_args()
    console = Console()
    names = ", ".join(launchers())
    console.print(f"{chosen.runs} runs from number {chosen.first}; launchers: {names}")
    rows = torture(chosen.first, chosen.runs, console)
    console.print(table_of(rows))
    sys.exit(any(row.wrong for row in rows.values()))


if __name__ == "__main__":
    main()
