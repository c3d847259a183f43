"""A person's own program, run on the owner while the other ranks wait as workers."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence

from fedmpi.errors import FedMPIError, UsageError
from fedmpi.tensors.session import session, use_threads
from fedmpi.tensors.shards import load_shards
from fedmpi.workers.crew import Crew


def run_script(
    script: str,
    arguments: Sequence[str],
    crew: Crew,
    memory: int,
    data: str = "",
    private: bool = False,
    threads: int = 1,
) -> None:
    """Runs a Python file as `python script.py arguments` would.

    Args:
        script: path of the file.
        arguments: the script's own, as it finds them in `sys.argv`.
        crew: what `fedmpi.workers()` returns in it.
        memory: most bytes of the tensors on each worker; 0: no limit but the node's memory.
        data: folder of a prepared dataset: each worker has loaded its shard when the script
            starts, and keeps it until the end.
        private: the workers keep their shards, and what is computed from them, to themselves.
        threads: PyTorch's on each rank.

    Raises:
        UsageError: there is no such file, the memory is negative, or there are not as many
            shards as workers.
        DataError: there is no dataset.
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
            # Once all have answered, they are idle: a mistake in the script ends no busy rank.
            use_threads(crew, threads)
            # A worker's objects live as long as the pointers to them: here, through the script.
            _kept = load_shards(workers, data, private=private) if data else []
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
