"""outcome.json: how a run has ended. A run without one goes on still, or was killed with its owner.

A launcher's status does not tell: that of Open MPI with ULFM is 0 whoever has died.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fedmpi.data.files import atomic, reason
from fedmpi.decoding import from_json
from fedmpi.errors import DataError, FedMPIError
from fedmpi.federated.metrics import LostWorker, RoundMetrics


@dataclass(frozen=True)
class RunOutcome:
    """How a run has ended.

    Attributes:
        exit_status: of the job, 0 if it reached its end.
        rounds: that have ended.
        reason: why it did not reach its end; empty if it did.
        lost: workers that have died on the way; those that ended the job are in the reason.
    """

    exit_status: int
    rounds: int
    reason: str = ""
    lost: list[LostWorker] = field(default_factory=list)


@contextmanager
def recording_outcome(path: Path, rounds: Sequence[RoundMetrics]) -> Iterator[None]:
    """Writes the outcome of what happens inside, whole or not at all.

    Args:
        path: of the file; an older one, of a run that is continued, is replaced.
        rounds: that have ended; grows while the block runs.
    """
    try:
        yield
    except BaseException as error:
        told = str(error) if isinstance(error, FedMPIError) else f"{type(error).__name__}: {error}"
        interrupted = isinstance(error, KeyboardInterrupt)
        status = 128 + signal.SIGINT if interrupted else FedMPIError.exit_status
        status = getattr(error, "exit_status", status)
        # On a disk that is full this fails too, for the reason that is told already.
        with suppress(OSError, DataError):
            _save(path, rounds, status, told)
        raise
    _save(path, rounds, 0, "")


def read_outcome(path: Path) -> RunOutcome | None:
    """The outcome of a run; None while it has none.

    Raises:
        DataError: the file cannot be read, or is damaged.
    """
    try:
        return from_json(path.read_bytes(), RunOutcome)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def lost_line(lost: Sequence[LostWorker]) -> str:
    """What was lost, in a line; empty if nothing was."""
    if not lost:
        return ""
    workers = ", ".join(f"rank {one.rank} on {one.host}" for one in lost)
    moved, gone = sum(len(one.moved) for one in lost), sum(len(one.lost) for one in lost)
    clients = f"{moved} clients moved to other workers"
    if gone:
        clients += f", {gone} are lost with their rows"
    return f"lost on the way: {workers}; {clients}"


def _save(path: Path, rounds: Sequence[RoundMetrics], status: int, told: str) -> None:
    lost = [one for metrics in rounds for one in metrics.lost]
    outcome = RunOutcome(status, len(rounds), told, lost)
    with atomic(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
