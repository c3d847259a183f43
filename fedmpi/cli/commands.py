"""The subcommands, one function for each; what they do lies in other rooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.cli.console import console_of
from fedmpi.cli.options import (
    DealOptions,
    ExecOptions,
    InfoOptions,
    InspectOptions,
    PredictOptions,
    PrepareOptions,
    ReportOptions,
    RunOptions,
)
from fedmpi.cli.parsing import config_of, defaults, parse, run_defaults
from fedmpi.cli.workers import IN_PROCESS_WORKERS, workers_of
from fedmpi.config import CommConfig, ComputeConfig, Recipe
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.crew import Crew

EXEC_WORKERS = 3
"""Workers of a script without mpirun: alice, bob and carol."""
EXEC_FLAGS = (
    "-h",
    "--help",
    "--private",
    "--no-private",
    "--secure-transport",
    "--no-secure-transport",
)
"""Options of exec that are one word."""


def run(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(RunOptions, "run", arguments, run_defaults(arguments, crew is not None))
    config = config_of(chosen)
    with workers_of(config.comm, config.data.path, crew, launcher) as workers:
        from fedmpi.study import recorded_run

        recorded_run.run(config, workers, console_of(launcher), resume=chosen.resume)


def prepare(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(PrepareOptions, "prepare", arguments)
    recipe = Recipe(**{f.name: getattr(chosen, f.name) for f in fields(Recipe)})
    CommConfig(workers=chosen.workers or "auto")  # refuses an absurd number
    writers = crew if crew and crew.ranks else None
    shards = chosen.workers or (len(writers.ranks) if writers else IN_PROCESS_WORKERS)
    folder = chosen.out or str(Path("data") / Path(recipe.source).stem)
    from fedmpi.workers import shards as writing

    index = writing.prepare(recipe, shards, folder, writers, chosen.overwrite)
    console_of(launcher).print(
        f"{index.rows} rows of {index.clients} clients in {shards} shards, {index.test.rows} rows "
        f"held out: {folder}",
        highlight=False,
        soft_wrap=True,
    )


def inspect(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    from fedmpi.study import inspect_data

    plot = inspect_data.inspect(
        parse(InspectOptions, "inspect", arguments).folder, console_of(launcher)
    )
    print(f"drawn to {plot}")


def report(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    from fedmpi.study import report as reporting

    folder = Path(parse(ReportOptions, "report", arguments).folder)
    plot = reporting.report(folder, console_of(launcher))
    print(f"drawn to {plot}")


def info(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    out = parse(InfoOptions, "info", arguments).out
    from fedmpi.study.info import show

    show(crew, launcher, console_of(launcher), out)


def execute(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    # What follows the script belongs to the script, options included.
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        alone = "=" in arguments[at] or arguments[at] in EXEC_FLAGS
        at += 1 if alone else 2
    chosen = parse(ExecOptions, "exec", arguments[: at + 1])
    if chosen.private and not chosen.data:
        raise UsageError("--private without --data: name the shards that are to be private")
    threads = ComputeConfig(threads=chosen.threads).threads  # refuses an absurd number
    auto = crew is not None or bool(chosen.data)
    comm = CommConfig(
        workers=chosen.workers or ("auto" if auto else EXEC_WORKERS),
        secure_transport=chosen.secure_transport,
        key_file=chosen.key_file,
    )
    with workers_of(comm, chosen.data, crew, launcher) as workers:
        from fedmpi.tensors.script import run_script

        run_script(
            chosen.script,
            arguments[at + 1 :],
            workers,
            chosen.memory_mib * 2**20,
            chosen.data,
            chosen.private,
            threads,
        )


def deal(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(DealOptions, "deal", arguments)
    from rich.progress import Progress

    from fedmpi.spdz import material
    from fedmpi.tensors.recorded_plan import RecordedPlan

    out = chosen.out or f"{chosen.plan}.material"
    console = console_of(launcher)
    with Progress(console=console) as bar:
        task = bar.add_task("dealing", total=chosen.runs)
        plan = RecordedPlan.load(chosen.plan)
        material.deal(plan, out, chosen.parties, chosen.runs, lambda run: bar.advance(task))
    console.print(f"{out}: {chosen.runs} runs for {chosen.parties} parties")


def predict(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(PredictOptions, "predict", arguments, defaults(arguments, PredictOptions))
    if crew is not None and crew.ranks:
        raise UsageError("predict needs one process: run it without mpirun, with --ranks")
    from fedmpi.study.cost_model import Machine
    from fedmpi.study.show_prediction import show

    cores = chosen.cores_per_node
    nodes = chosen.nodes or -(-chosen.ranks // max(1, cores))
    machine = Machine(chosen.ranks, nodes, cores)
    show(
        config_of(chosen),
        machine,
        chosen.rows,
        chosen.test_rows,
        Path(chosen.bench),
        chosen.latency_us,
        chosen.gbit,
        chosen.out,
        console_of(launcher),
    )
