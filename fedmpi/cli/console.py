"""Where a person reads what a command says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console_of(launcher: str) -> Console:
    from rich.console import Console

    # Open MPI gives its ranks a terminal even when its own output goes to a file.
    return Console(file=sys.stdout, force_terminal=False if launcher else None)
