"""The log of a rank: kept in memory until it is known where the run's folder is, then in a file.

    LOG.warning("rank %d is silent", 3)

Every module writes to `LOG`, with the standard library's `logging`. Worker threads of one process
share its log; each line names its rank.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import socket
import threading
from collections import deque
from pathlib import Path
from typing import TextIO

import fedmpi
from fedmpi.errors import printable

LOG = logging.getLogger("fedmpi")
LOG.addHandler(logging.NullHandler())  # without it, errors of a program's own job go to stderr

KEPT_LINES = 200
"""Lines that a rank keeps while it has no file: a job without a folder must not grow."""


class _RankFilter(logging.Filter):
    """Puts the rank into a record."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = f"rank {rank}"

    def filter(self, record: logging.LogRecord) -> bool:
        thread = record.threadName or ""
        inside = thread.startswith("fedmpi-rank-")
        record.rank = f"rank {thread.removeprefix('fedmpi-rank-')}" if inside else self._rank
        return True


class _Kept(logging.Handler):
    """The latest records, for a file to come."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=KEPT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Line(logging.Formatter):
    """A record for a person who reads it in a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(rank)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _File(logging.FileHandler):
    """A file of the log, which is no result: on a disk that is full the run goes on without."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lines that cannot be written are left out; what matters is told on stderr."""


class RankLog:
    """This process's own; see the module.

    Attributes:
        path: of its file; None while there is none.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._handler: logging.Handler | None = None
        self._filter: _RankFilter | None = None
        self._lock = threading.Lock()

    def begin(self, rank: int) -> None:
        """Begins to keep lines, the first of which say what this process is."""
        LOG.setLevel(logging.INFO)
        LOG.propagate = False  # a person's own logging stays what it is
        self._filter = _RankFilter(rank)
        self._take(_Kept())
        LOG.info(
            "start: process %d on %s, FedMPI %s, Python %s",
            os.getpid(),
            socket.gethostname(),
            fedmpi.__version__,
            platform.python_version(),
        )

    def open(self, folder: str | os.PathLike[str], rank: int) -> None:
        """Puts what was kept, and all that comes, into `rank-N.log` of a folder.

        A node may have no access to the folder, or no space: its rank goes on without a file.
        """
        path = Path(folder) / f"rank-{rank}.log"
        with self._lock:
            if self._handler is None or path == self.path:
                return
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = _File(path, encoding="utf-8")
            except OSError as error:
                LOG.warning("no log file %s: %s", path, error.strerror)
                return
            kept = self._handler
            self._take(file)
            self.path = path
            if isinstance(kept, _Kept):
                for record in kept.records:
                    file.emit(record)
            # A crash in C (a segmentation fault) leaves its stack in the log too.
            if file.stream:
                faulthandler.enable(file=file.stream)

    @property
    def stream(self) -> TextIO | None:
        """The open file, if there is one."""
        return self._handler.stream if isinstance(self._handler, logging.FileHandler) else None

    def _take(self, handler: logging.Handler) -> None:
        assert self._filter
        handler.addFilter(self._filter)
        handler.setFormatter(_Line())
        LOG.addHandler(handler)
        if self._handler is not None:
            LOG.removeHandler(self._handler)
        self._handler = handler


RANK_LOG = RankLog()
"""This process's own; without `begin` it keeps nothing."""
