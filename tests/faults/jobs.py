"""Jobs that go wrong: started, watched to the end of their last process, and judged."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedmpi.study.metrics_file import read_metrics
from tests import launch
from tests.launch import Launcher

GONE_WITHIN = 10.0
"""Seconds after a fault in which every process of the job has to be gone."""
START_WITHIN = 90.0
"""Seconds for imports and the first round, on a machine with other work."""

MODELS = '''
"""A person's own models, some of which go wrong."""

import os
import threading

from torch import nn


def _net(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


def good(row_shape, classes):
    return _net(classes)


def few_outputs():
    return _net(3)


def wide_rows():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def no_parameters():
    return nn.Flatten()


def broken_factory(row_shape, classes):
    raise RuntimeError("no weights in this folder")


class _Raises(nn.Module):
    """Raises on rank 2, in the tenth step of its training."""

    def __init__(self, classes):
        super().__init__()
        self.net = _net(classes)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == 10 and _rank() == "2":
            raise RuntimeError("the tenth step went wrong")
        return self.net(x)


def _rank():
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return os.environ[name]
    return threading.current_thread().name.removeprefix("fedmpi-rank-")


def raises(row_shape, classes):
    return _Raises(classes)
'''


@dataclass
class Ended:
    """A job of which nothing is left.

    Attributes:
        status: exit status of the launcher, or of the one process.
        stdout, stderr: all that was printed.
        seconds: from the fault, or from what was said about it, to the end of the last process.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float

    def told(self, *words: str, rank: int = 0) -> str:
        """The one sentence of a refusal: it has these words, and nothing else is a traceback."""
        assert self.status != 0, self
        assert "Traceback" not in self.stderr, self.stderr
        mine = [line for line in self.stderr.splitlines() if line.startswith("fedmpi: ")]
        assert len(mine) == 1, self.stderr
        assert mine[0].startswith(f"fedmpi: rank {rank}: "), mine
        assert [word for word in words if word not in mine[0]] == [], mine
        return mine[0]


class Job:
    """A running job; every process of it carries a mark in its environment."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str, folder: Path) -> None:
        self.process = process
        self._mark = mark
        self._folder = folder
        self._shared: set[Path] = set()

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found = process.environ()
                ranks = found.get("PMI_RANK"), found.get("OMPI_COMM_WORLD_RANK")
                if str(number) in ranks and "python" in process.name():
                    return process
        raise AssertionError(f"no rank {number}: {self.printed()}")

    def processes(self) -> list[psutil.Process]:
        """All that live."""
        return launch._marked(self._mark)

    def printed(self) -> tuple[str, str]:
        """Stdout and stderr so far."""
        files = (self._folder / "stdout", self._folder / "stderr")
        out, err = (file.read_bytes().decode(errors="replace") for file in files)
        return out, err

    def wait_for_round(self, run: Path, number: int = 2) -> None:
        """Waits until a run has ended a round, so that a rank can be killed in another one."""
        deadline = time.monotonic() + START_WITHIN
        lines = run / "metrics.jsonl"
        while not lines.exists() or len(lines.read_bytes().splitlines()) < number:
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.05)
        # MPI removes its files in shared memory only when it ends as it should.
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                self._shared |= {
                    Path(m.path) for m in process.memory_maps() if m.path.startswith("/dev/shm/")
                }

    def end(self) -> Ended:
        """Waits until the launcher and every other process are gone.

        Raises:
            AssertionError: something of the job is still there after `GONE_WITHIN` seconds.
        """
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE_WITHIN)
        while (left := self.processes()) and time.monotonic() < begun + GONE_WITHIN:
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        out, err = self.printed()
        for file in self._shared:
            file.unlink(missing_ok=True)
        assert not left, f"after {seconds:.1f} s: {[p.cmdline() for p in left]}\n{out}\n{err}"
        return Ended(self.process.returncode, out, err, seconds)


@contextlib.contextmanager
def started(
    launcher: Launcher | None,
    ranks: int,
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Iterator[Job]:
    """Starts `python -m fedmpi ARGUMENTS` in the working folder; kills at the end what is left.

    Args:
        launcher: None for one process.
        ranks: for the launcher.
        arguments: of fedmpi.
        env: variables to set; a value of None removes one.
        before: what goes before the command, such as a shell that sets a limit.
        options: more options for mpirun.
    """
    mark = uuid.uuid4().hex
    changes = {**(launcher.variables if launcher else {}), **(env or {}), launch._MARK: mark}
    environment = launch._clean_environment() | {k: v for k, v in changes.items() if v is not None}
    environment = {k: v for k, v in environment.items() if changes.get(k, "") is not None}
    environment["PYTHONPATH"] = os.pathsep.join([str(launch.ROOT), "."])
    command = [sys.executable, "-m", "fedmpi", *map(os.fspath, arguments)]
    if launcher:
        command = [launcher.mpirun, *options, "-n", str(ranks), *command]
    folder = Path.cwd().parent
    with open(folder / "stdout", "ab") as out, open(folder / "stderr", "ab") as err:
        out.truncate(0)
        err.truncate(0)
        process = subprocess.Popen(
            [*before, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
    try:
        yield Job(process, mark, folder)
    finally:
        launch._end(process, mark)


def run(
    launcher: Launcher | None,
    ranks: int,
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
) -> Ended:
    """Runs a job to its end; from its first sentence on stderr it has `GONE_WITHIN` seconds."""
    with started(launcher, ranks, *arguments, env=env, before=before) as job:
        deadline = time.monotonic() + START_WITHIN
        while job.process.poll() is None and "fedmpi: " not in job.printed()[1]:
            assert time.monotonic() < deadline, job.printed()
            time.sleep(0.05)
        return job.end()


def half_written(folder: Path) -> list[str]:
    """What no fault may leave behind: temporary names, and the model of a run that did not end."""
    return [str(p) for p in folder.rglob("*") if ".tmp" in p.name or p.name == "model.h5"]


def rounds_of(run_folder: Path) -> int:
    """Number of rounds in a metrics.jsonl, every line of which can be read."""
    return len(read_metrics(run_folder / "metrics.jsonl"))
