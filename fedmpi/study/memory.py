"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

from fedmpi.errors import UsageError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Memory that the process holds now."""
    return _of("VmRSS")


def peak_bytes() -> int:
    """The most that it has held since it began, or since `forget_peak`."""
    return _of("VmHWM")


def forget_peak() -> None:
    """Starts the peak anew at what is held now (see proc_pid_clear_refs(5))."""
    _CLEAR.write_text("5")


def _of(name: str) -> int:
    try:
        status = _STATUS.read_text()
    except OSError as error:
        raise UsageError(f"memory is measured on Linux alone: {error}") from None
    found = re.search(rf"{name}:\s*(\d+) kB", status)
    assert found, status
    return int(found[1]) * 1024
