"""Makes pytest speak with one voice under mpirun: the same files, one readable report, no hangs.

    pytest                                              one process; MPI tests are skipped
    mpirun -n 4 python -m pytest --with-mpi --only-mpi  the tests marked `mpi`, on all ranks

Under a launcher, all ranks run the same tests in step: after each test they agree on its
outcome. A test that fails on any rank fails on every rank, and rank 0 prints what the others
saw. When a rank fails while others wait for it inside the test, it prints its report and
ends the whole job after `GRACE` seconds. Without a launcher mpi4py is not imported here.
"""

from __future__ import annotations

import difflib
import os
import threading
import time
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

GRACE = float(os.environ.get("FEDMPI_TEST_GRACE", "10"))
"""Seconds that a rank with a failed test waits for the others to come out of it."""

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE", "SLURM_STEP_NUM_TASKS")


def launched_size() -> int:
    """The number of ranks that a launcher says it started; 0 without one."""
    for name in _SIZE_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def pytest_configure(config: pytest.Config) -> None:
    try:
        import hypothesis
    except ImportError:
        pass
    else:
        # Under MPI all ranks must draw the same examples.
        hypothesis.settings.register_profile("one", deadline=None)
        hypothesis.settings.register_profile("mpi", deadline=None, derandomize=True, database=None)
        hypothesis.settings.load_profile("mpi" if launched_size() else "one")
    if launched_size() and (config.getoption("with_mpi") or config.getoption("only_mpi")):
        config.pluginmanager.register(Ranks(config), "fedmpi-ranks")
    elif launched_size() > 1:
        raise pytest.UsageError(
            f"{launched_size()} ranks run the same tests: add --with-mpi --only-mpi"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--only-mpi leaves the other tests out instead of skipping them one by one."""
    if config.getoption("only_mpi"):
        others = [item for item in items if "mpi" not in item.keywords]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if "mpi" in item.keywords]


class _Voice:
    """Where a rank's pytest reports to: rank 0 to its output, the others to memory.

    What another thread writes is pytest-timeout printing the stacks of a hang, before it ends the
    process: that is shown for every rank, in one piece, and the others get time to do the same.
    """

    encoding = "utf-8"

    def __init__(self, name: str, file: Any) -> None:
        self.name = name
        self.file = file
        self.kept: list[str] = []
        self.stacks: list[str] = []

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            self.stacks.append(text)
        elif self.file:
            self.file.write(text)
        else:
            self.kept.append(text)
        return len(text)

    def flush(self) -> None:
        if self.file:
            self.file.flush()
        if self.stacks and threading.current_thread() is not threading.main_thread():
            os.write(2, f"\n== {self.name} hangs\n{''.join(self.stacks)}".encode())
            self.stacks.clear()
            time.sleep(2)

    def isatty(self) -> bool:
        return bool(self.file) and self.file.isatty()


class Ranks:
    """Keeps the ranks in step."""

    def __init__(self, config: pytest.Config) -> None:
        from mpi4py import MPI

        self.config = config
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        if self.size != launched_size():
            raise pytest.UsageError(
                f"the launcher started {launched_size()} ranks but the library sees {self.size}: "
                f"they are of two MPIs; the library is {MPI.Get_library_version()[:40]!r}"
            )
        self.library = MPI.Get_library_version().split("\0")[0].split("\n")[0].split(", package")[0]
        self.failures: list[str] = []
        self.watchdog: threading.Timer | None = None
        self.name = f"rank {self.rank} of {self.size}"
        self.voice = _Voice(self.name, None)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            self.voice.file = None if self.rank else reporter._tw._file
            reporter._tw._file = self.voice
        for plugin in self.config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "MPIPlugin":
                plugin._is_testing_mpi = False  # only this: no page on MPI before the summary

    def pytest_report_header(self) -> str:
        return f"MPI: {self.size} ranks of {' '.join(self.library.split())}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        mine = bool(self.failures)
        if others := self.agree("the end of the collection"):
            if not mine:
                pytest.exit(others, returncode=1)
            return
        names = "\n".join(item.nodeid for item in session.items)
        self.agree(f"{len(session.items)} collected tests:\n{names}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            sections = "".join(f"\n--- {title}\n{text}" for title, text in report.sections)
            self.failures.append(f"{report.longreprtext}{sections}")
            self.watch(item.nodeid)
        if report.when == "teardown":
            mine = bool(self.failures)
            others = self.agree(item.nodeid)
            if others and not mine:
                report.outcome = "failed"
                report.longrepr = others
        return report

    def agree(self, where: str) -> str:
        """Waits for all ranks at the same place; returns the failures that they came with."""
        if not self.meet(where, len(self.failures)):
            return ""
        told = self.comm.allgather("\n".join(self.failures))
        self.failures.clear()
        return "\n".join(
            f"rank {rank} of {self.size} failed:\n{text}" for rank, text in enumerate(told) if text
        )

    def meet(self, where: str, value: int) -> int:
        """The largest of all ranks' values, once all are at the same place."""
        from mpi4py import MPI

        place = zlib.crc32(where.encode())
        largest, last, first = self.wait(self.comm.Iallreduce, [value, place, -place], MPI.MAX)
        if self.watchdog:
            self.watchdog.cancel()
            self.watchdog = None
        if last != -first:
            self.part(where)
        return largest

    def wait(self, call: Any, values: list[int], operation: Any) -> list[int]:
        """A reduction that burns no core: the ranks that are still at work need it."""
        import numpy as np

        sent, received = np.array(values, np.int64), np.zeros(len(values), np.int64)
        request = call(sent, received, operation)
        pause = 1e-5
        while not request.Test():
            time.sleep(pause)
            pause = min(pause * 1.5, 0.005)
        return received.tolist()

    def watch(self, nodeid: str) -> None:
        """From the first failure on, the others have `GRACE` seconds to come out of the test."""
        if self.watchdog is None:
            why = f"{nodeid} failed, and other ranks did not come out of it within {GRACE:g} s"
            self.watchdog = threading.Timer(GRACE, self.stop, [why])
            self.watchdog.daemon = True
            self.watchdog.start()

    def part(self, where: str) -> NoReturn:
        """Ends the job because the ranks are at different places; rank 0 tells who is where."""
        told = self.comm.allgather((where, "".join(self.voice.kept) + "\n".join(self.failures)))
        if self.rank:
            time.sleep(5)
            os._exit(1)
        for rank, (place, printed) in enumerate(told):
            if place != where:
                names = "rank 0", f"rank {rank}"
                lines = difflib.unified_diff(
                    where.split("\n"), place.split("\n"), *names, n=0, lineterm=""
                )
                self.say("\n".join([printed, *lines]))
        self.stop("the ranks do not run the same tests")

    def stop(self, why: str) -> NoReturn:
        """Prints this rank's failures and ends the job: a launcher ends all when one exits so."""
        self.say("\n".join([*self.failures, f"== {self.name}: {why}; the job is aborted"]))
        os._exit(1)

    def say(self, text: str) -> None:
        capture: Any = self.config.pluginmanager.get_plugin("capturemanager")
        if capture:
            capture.suspend_global_capture(in_=True)
        os.write(2, f"\n{text}\n".encode())

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """All ranks end with the worst status of any."""
        session.exitstatus = self.meet("the end of the tests", int(exitstatus))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """No rank leaves before rank 0 has printed its summary: a launcher may end it then."""
        self.meet("the end", 0)
        # MPICH's mpirun may report success when a rank has left in the middle with status 0.
        end = os.environ.get("FEDMPI_TEST_END")
        if end and self.comm.rank == 0:
            Path(end).touch()
