"""Reads damaged inputs by the thousand, and says what came of them.

    python -m tests.fuzz --inputs 20000          (make fuzz)
    python -m tests.fuzz --only "index files" --first 4711 --inputs 1     that one again

Each target is read in a process of its own with little memory, which ends at an error that is not
FedMPI's, and when one input takes longer than LIMIT seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

LIMIT = 20
"""Seconds for one input, on a busy machine."""
MEMORY = 6 * 2**30
"""Bytes of address space for one process; PyTorch's libraries alone take half of it."""


def child(name: str, first: int, inputs: int) -> None:
    """Reads the inputs of one target; says how many were refused, and how many could be read."""
    from fedmpi.errors import FedMPIError
    from tests.fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        target = TARGETS[name](Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sentences: list[str] = []
        for number in range(first, first + inputs):
            faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
            try:
                target.read(random.Random(f"{name} {number}"))
            except FedMPIError as error:
                sentences.append(str(error))
            except BaseException:
                print(f"input {number} of {name}:", file=sys.__stderr__)
                raise
        faulthandler.cancel_dump_traceback_later()
    assert all(sentences), f"{name}: a refusal without a word"
    # A line break or a terminal's escape sequence would be the sender's words, not ours.
    odd = [sentence for sentence in sentences if not sentence.isprintable()]
    assert not odd, f"{name}: not a sentence: {odd[0]!r}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(len(sentences), inputs - len(sentences), peak)


def fuzz(name: str, first: int, inputs: int) -> tuple[int, int, int]:
    """Inputs that were refused, inputs that could be read, and the most memory in MiB.

    Raises:
        AssertionError: the process crashed, hung, or met an error that is not FedMPI's.
    """
    arguments = ["--child", "--only", name, "--first", str(first), "--inputs", str(inputs)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, f"{name}: status {done.returncode}\n{done.stderr[-4000:]}"
    refused, read, peak = map(int, done.stdout.split())
    return refused, read, peak


def main() -> None:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.only, chosen.first, chosen.inputs)
        return
    table = Table("read", "inputs", "refused", "readable", "seconds", "MiB at most")
    for name in [chosen.only] if chosen.only else TARGETS:
        begun = time.perf_counter()
        refused, read, peak = fuzz(name, chosen.first, chosen.inputs)
        seconds = time.perf_counter() - begun
        table.add_row(
            name, f"{chosen.inputs:,}", f"{refused:,}", f"{read:,}", f"{seconds:.0f}", f"{peak:,}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
