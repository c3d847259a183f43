"""Runs a command and watches all of its processes from outside: memory, processor time, a limit.

A process belongs to a run if the run's mark is in its environment or its parent belongs to it:
Ray's daemons leave the process group, and its actors overwrite their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "FEDMPI_BENCH_RUN"
EVERY = 0.25
"""Seconds from one sample to the next."""
GROWN, EVERY_PSS = 1.01, 2.0
"""By so much more resident memory, or after so many seconds, a sample looks at PSS too."""
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


class Watched(NamedTuple):
    """Attributes:
    launched: seconds since 1970.
    total: seconds from the launch to the end of the command.
    peak_mib: the largest sum of the processes' PSS, in which what n processes share counts 1/n.
    processes: at that peak.
    others: cores that processes outside of the run kept busy meanwhile.
    status: of the command; None if it was killed at the limit.
    """

    launched: float
    total: float
    peak_mib: float
    processes: int
    others: float
    status: int | None


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    out: Path,
    log: Path,
    limit: float,
) -> Watched:
    """Runs a command in `folder`; its stdout goes to `out`, its stderr to `log`.

    Nothing of it is left afterwards. At `limit` seconds it is killed.
    """
    mark = uuid.uuid4().hex
    with out.open("wb") as stdout, log.open("wb") as stderr:
        launched, busy, begun = time.time(), _busy(), time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**environment, MARK: mark, "PEERS_LAUNCHED": repr(launched)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        sampler = Sampler(mark)
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(limit)
        finally:
            total = time.perf_counter() - begun
            others = (_busy() - busy - sampler.stop()) / total
            sampler.end_all()
            process.wait()
    return Watched(
        launched, total, sampler.peak / 2**20, sampler.processes, max(others, 0.0), status
    )


class Sampler(threading.Thread):
    """Samples the processes with a mark until it is told to stop.

    Attributes:
        peak: bytes, the largest sum of PSS.
        processes: at the peak.
    """

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[tuple[int, str], bool] = {}
        self._cpu: dict[tuple[int, str], float] = {}
        self._over = threading.Event()
        self._resident, self._next_pss = 0, 0.0
        self.peak, self.processes = 0, 0
        self.start()

    def run(self) -> None:
        while not self._over.wait(EVERY):
            self.sample()

    def sample(self) -> None:
        """PSS takes the kernel 20 milliseconds for each GiB, hence only when resident memory has
        grown, or after a while: pages that stop being shared change PSS alone.
        """
        pids, now = self.pids(), time.monotonic()
        resident = sum(map(_resident, pids))
        if resident <= GROWN * self._resident and now < self._next_pss:
            return
        self._resident, self._next_pss = max(resident, self._resident), now + EVERY_PSS
        found = [size for pid in pids if (size := _pss(pid))]
        if sum(found) > self.peak:
            self.peak, self.processes = sum(found), len(found)

    def pids(self) -> list[int]:
        """The run's processes, parents before their children where they are new."""
        found: dict[int, tuple[int, str]] = {}
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            stat = _stat(pid)
            if stat is None:
                continue
            parent, begun, cpu = stat
            key = (pid, begun)
            if not self._known.get(key):  # its environment is read once, its parent may come later
                new = key not in self._known
                self._known[key] = parent in found or (new and self._marked(pid))
            if self._known[key]:
                found[pid] = key
                self._cpu[key] = cpu
        return list(found)

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another person's
            return False

    def stop(self) -> float:
        """Ends the sampling; returns the processor seconds of the run as last seen."""
        self._over.set()
        self.join()
        return sum(self._cpu.values())

    def end_all(self) -> None:
        """Kills what is left of the run, for at most ten seconds."""
        deadline = time.monotonic() + 10
        while (left := self.pids()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _stat(pid: int) -> tuple[int, str, float] | None:
    """Parent, start time and processor seconds of a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return int(fields[1]), fields[19], (int(fields[11]) + int(fields[12])) / TICK


def _resident(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    try:
        return PAGE * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def _pss(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(k.split()[1]) for k in lines if k.startswith("Pss:")), 0)


def _busy() -> float:
    """Processor seconds that all processes of the machine have had, and those that were stolen."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICK
