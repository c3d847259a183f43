"""The command line: what there is to say, and which function does it.

`options` are what each subcommand takes, `parsing` makes them of words, `workers` finds who works,
`commands` and `benches` have a function for each subcommand. What takes long to import is imported
in these functions: `--help` takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import fedmpi
from fedmpi.cli import commands, options
from fedmpi.cli.benches import bench
from fedmpi.cli.parsing import Subcommand
from fedmpi.comm.signals import SIGNALS
from fedmpi.config import nearest
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.crew import Crew

SUBCOMMANDS: dict[str, tuple[Subcommand, type]] = {
    "run": (commands.run, options.RunOptions),
    "prepare": (commands.prepare, options.PrepareOptions),
    "inspect": (commands.inspect, options.InspectOptions),
    "report": (commands.report, options.ReportOptions),
    "info": (commands.info, options.InfoOptions),
    "exec": (commands.execute, options.ExecOptions),
    "deal": (commands.deal, options.DealOptions),
    "bench": (bench, options.BenchOptions),
    "predict": (commands.predict, options.PredictOptions),
}


def main(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    """Obeys a command line on rank 0.

    Args:
        arguments: without the program's name; no subcommand means `run`.
        crew: the other ranks of an MPI launch; None without a launcher.
        launcher: its name; empty without one.

    Raises:
        FedMPIError: see the subcommand.
        SystemExit: help was asked for, or an option is wrong.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("run", [])
    if name != "run" and (name in SUBCOMMANDS or not name.startswith("-")):
        SIGNALS.release()  # only a run knows where to leave
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"fedmpi {fedmpi.__version__}")
    elif name.startswith("-"):
        commands.run(arguments, crew, launcher)
    elif name in SUBCOMMANDS:
        SUBCOMMANDS[name][0](rest, crew, launcher)
    else:
        known = ", ".join(SUBCOMMANDS)
        raise UsageError(f"unknown command {name!r}{nearest(name, SUBCOMMANDS)}: one of {known}")


def _help() -> str:
    lines = [
        "usage: python -m fedmpi [COMMAND] [OPTIONS]",
        "       mpirun -n 8 python -m fedmpi [COMMAND] [OPTIONS]",
        "",
        *(f"  {name:<9}{cls.__doc__}" for name, (_, cls) in SUBCOMMANDS.items()),
        "",
        "Without a command: run. `python -m fedmpi COMMAND --help` lists a command's options.",
    ]
    return "\n".join(lines)
