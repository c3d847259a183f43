"""metrics.jsonl, clients.jsonl, scores.jsonl: a record a line, there to read during the run.

NaN and infinities of a run that diverged are written as Python's and pandas' JSON
readers know them (`NaN`, `Infinity`); null means that nothing was measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmpi.data.files import reason
from fedmpi.decoding import converted
from fedmpi.errors import DataError, FedMPIError, UsageError
from fedmpi.federated.metrics import ClientMetrics, ClientScore, RoundMetrics

SECONDS_BETWEEN_SYNCS = 5.0


class _LinesWriter:
    """A file that takes records as lines of JSON: a new one, or one that goes on.

    It is locked, where the file system can do that, so that a run does not go on twice.

    Lines reach the file at once, so that a killed job loses none, and the disk every
    few seconds, so that a node that fails loses little and a fast run is not slowed.
    """

    def __init__(self, path: Path, go_on_after: int | None = None) -> None:
        self._path = path
        self._closing = threading.Lock()
        mode = "xb" if go_on_after is None else "ab"
        try:
            self._file = open(path, mode, buffering=0)  # noqa: SIM115 -- closed by __exit__
        except OSError as error:
            raise self._failure(error) from None
        self._next_sync = 0.0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"{path} is being written by another process: wait for it") from None
        except OSError:
            pass  # many cluster file systems cannot lock
        if go_on_after is not None:
            cut_back(path, go_on_after)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file once its lines are on the disk."""
        self.sync()
        with self._closing:
            self._file.close()

    def sync(self) -> None:
        """Waits until the lines are on the disk, as those of a closed file are; from any thread."""
        try:
            with self._closing:
                if not self._file.closed:
                    os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from None

    def _append(self, records: Sequence[RoundMetrics | ClientMetrics | ClientScore]) -> None:
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in records).encode()
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
            if time.monotonic() >= self._next_sync:
                os.fsync(self._file.fileno())
                self._next_sync = time.monotonic() + SECONDS_BETWEEN_SYNCS
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> FedMPIError:
        return FedMPIError(f"cannot write {self._path}: {reason(error)}")


class MetricsWriter(_LinesWriter):
    """Writes metrics.jsonl.

    Args:
        path: of the file.
        go_on_after: round after which to go on in a file that may be there; None: in a new file.

    Raises:
        FedMPIError: the file exists, or cannot be written (a full disk, a quota).
    """

    def write(self, metrics: RoundMetrics) -> None:
        """Appends a round."""
        self._append([metrics])


class ClientsWriter(_LinesWriter):
    """Writes clients.jsonl, or scores.jsonl; see `MetricsWriter`.

    Raises:
        FedMPIError: the file exists, or cannot be written (a full disk, a quota).
    """

    def write(self, clients: list[ClientMetrics] | list[ClientScore]) -> None:
        """Appends the clients of a round."""
        self._append(clients)


def cut_back(path: Path, number: int) -> None:
    """Takes the records of rounds after this one out of a file; rounds ascend in it.

    Raises:
        DataError: the file cannot be changed, or a line is damaged.
    """
    size = 0
    try:
        with open(path, "r+b") as file:
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["round"] > number:
                    break
                size += len(line)
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"cannot cut back {path}: {reason(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged after byte {size}: {error}") from None


def read_metrics(path: Path) -> list[RoundMetrics]:
    """The rounds of a metrics.jsonl.

    A last line that was cut off, as by a time limit, is left out with a warning.

    Raises:
        DataError: the file cannot be read, or a line is damaged; names file and line.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from None
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            rounds.append(converted(json.loads(line), RoundMetrics))
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or not a round
            if number == len(lines) and not line.endswith(b"\n"):
                warnings.warn(f"{path}, line {number} is cut off: left out", stacklevel=2)
                break
            raise DataError(f"{path}, line {number} is damaged: {reason(error)}") from None
    return rounds
