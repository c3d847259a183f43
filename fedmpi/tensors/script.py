"""A person's own program, run on the owner while the other ranks wait as workers."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence

from fedmpi.errors import FedMPIError, UsageError
from fedmpi.tensors.session import session
from fedmpi.workers.crew import Crew


def run_script(script: str, arguments: Sequence[str], crew: Crew, memory: int) -> None:
    """Runs a Python file as `python script.py arguments` would.

    Args:
        script: path of the file.
        arguments: the script's own, as it finds them in `sys.argv`.
        crew: what `fedmpi.workers()` returns in it.
        memory: most bytes of the tensors on each worker; 0: no limit but the node's memory.

    Raises:
        UsageError: there is no such file, or the memory is negative.
        FedMPIError: what the script ran into, with its line.
    """
    if not os.path.isfile(script):
        raise UsageError(f"no script {script}")
    if memory < 0:
        raise UsageError(f"memory_mib = {memory // 2**20}: expected at least 0")
    argv, path = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(os.path.abspath(script))
    try:
        with session(crew) as workers:
            for worker in workers if memory else ():
                worker.limit_memory(memory)
            runpy.run_path(script, run_name="__main__")
    except FedMPIError as error:
        error.args = (_with_line(error, script),)
        raise
    finally:
        sys.argv, sys.path[0] = argv, path


def _with_line(error: FedMPIError, script: str) -> str:
    """The sentence of an error, with the line of the script that met it."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == script]
    return f"{script}, line {lines[-1].lineno}: {error}" if lines else str(error)
