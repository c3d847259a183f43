"""How a run has ended, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.errors import DataError, FedMPIError, LostRank, UsageError
from fedmpi.federated.metrics import LostWorker
from fedmpi.study.outcome import RunOutcome, lost_line, read_outcome, recording_outcome

LOST = LostWorker(3, "node7", "its process died", [(4, 1), (8, 1)], [5])


def test_an_end(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert read_outcome(path) is None
    with recording_outcome(path, []):
        assert read_outcome(path) is None
    assert read_outcome(path) == RunOutcome(0, 0)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UsageError("7 shards"), 2, "7 shards"),
        (LostRank("lost rank 3", (3,)), 1, "lost rank 3"),
        (ZeroDivisionError("at sea"), 1, "ZeroDivisionError: at sea"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt: "),
    ],
)
def test_an_error(tmp_path: Path, error: BaseException, status: int, reason: str) -> None:
    path = tmp_path / "outcome.json"
    with pytest.raises(type(error)), recording_outcome(path, []):
        raise error
    assert read_outcome(path) == RunOutcome(status, 0, reason)


def test_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(b'{"exit_status": "none"}')
    with pytest.raises(DataError, match=r"outcome\.json is damaged"):
        read_outcome(path)


def test_what_was_lost() -> None:
    assert lost_line([]) == ""
    assert lost_line([LOST]) == (
        "lost on the way: rank 3 on node7; 2 clients moved to other workers, 1 are lost with "
        "their rows"
    )


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FedMPIError), recording_outcome(tmp_path / "no" / "outcome.json", []):
        pass
