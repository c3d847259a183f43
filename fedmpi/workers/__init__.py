"""Commands, the worker's loop that obeys them, and the owner's handle on its workers.

`fedmpi.workers()`, the workers of a program, has the name of this room: it is a call too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fedmpi.errors import UsageError

NO_WORKERS = (
    "no workers: run the script with mpirun -n 4 python -m fedmpi exec script.py, or "
    "work inside `with fedmpi.simulate(workers=3) as (alice, bob, carol):`"
)

of_the_program: Callable[[], tuple[Any, ...]] | None = None
"""Set by the room above that knows the workers' handles."""


class _Room(ModuleType):
    def __call__(self) -> tuple[Any, ...]:
        """The `RemoteWorker`s of the program, in the order of their ranks.

        Raises:
            UsageError: there are none.
        """
        if of_the_program is None:
            raise UsageError(NO_WORKERS)
        return of_the_program()


sys.modules[__name__].__class__ = _Room
