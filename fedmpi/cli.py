"""The subcommands, nothing else: one function and one class of options for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

import fedmpi
from fedmpi.comm.signals import SIGNALS
from fedmpi.config import (
    CommConfig,
    ComputeConfig,
    Config,
    DataConfig,
    FederatedConfig,
    Recipe,
    SecureConfig,
    from_toml,
    nearest,
)
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from fedmpi.workers.crew import Crew

IN_PROCESS_WORKERS = 7
"""Workers of a run without mpirun: as many as `mpirun -n 8` has."""
EXEC_WORKERS = 3
"""Workers of a script without mpirun: alice, bob and carol."""
MOST_IN_PROCESS_WORKERS = 1024
"""Each is a thread; tens of thousands take minutes to start."""

T = TypeVar("T")
Subcommand = Callable[[Sequence[str], "Crew | None", str], None]

_SHORT = tyro.conf.arg(name="")
"""The tree is for reading; on the command line --rounds is enough. The newer branches keep their
names: --privacy.epsilon."""


@dataclass(frozen=True)
class JobOptions(Config):
    """What describes a federated job."""

    data: Annotated[DataConfig, _SHORT] = field(default_factory=DataConfig)
    federated: Annotated[FederatedConfig, _SHORT] = field(default_factory=FederatedConfig)
    secure: Annotated[SecureConfig, _SHORT] = field(default_factory=SecureConfig)
    comm: Annotated[CommConfig, _SHORT] = field(default_factory=CommConfig)
    compute: Annotated[ComputeConfig, _SHORT] = field(default_factory=ComputeConfig)

    config: str = ""
    """A TOML file; the options on the command line win over it."""


J = TypeVar("J", bound=JobOptions)


@dataclass(frozen=True)
class RunOptions(JobOptions):
    """Run a federated job: federated averaging over the workers' shards."""

    resume: str = ""
    """Folder of a run that was ended before its time, such as runs/2nn-mnist5k-001: go on with it,
    with the configuration that it has."""


@dataclass(frozen=True)
class PrepareOptions(Recipe):
    """Make shards and their index from a dataset."""

    source: tyro.conf.Positional[str] = "mnist5k"
    """mnist5k, digits, breast_cancer, diabetes, boston, mnist, fashion_mnist, kmnist, emnist,
    cifar10, cifar100, or the path of a .npz, .h5 or .hdf5 file of your own."""
    workers: int = 0
    """Number of shards; 0: one for each worker of this launch, 7 without mpirun."""
    out: str = ""
    """Folder of the shards; empty: data/<source>."""
    overwrite: bool = False
    """Replace the dataset that the folder holds."""


@dataclass(frozen=True)
class InspectOptions:
    """Show rows, clients and labels of prepared shards, as a table and as labels.png."""

    folder: tyro.conf.Positional[str]
    """Folder of prepared shards."""


@dataclass(frozen=True)
class ReportOptions:
    """Show a run: accuracy and loss, time by phase, bytes sent; as tables and as report.png."""

    folder: tyro.conf.Positional[str]
    """Folder of a run, such as runs/2nn-mnist5k-001."""


@dataclass(frozen=True)
class InfoOptions:
    """Show MPI library, ranks, cores, threads, versions and GPUs of this launch."""

    out: str = ""
    """A JSON file for the facts of every rank, too."""


@dataclass(frozen=True)
class ExecOptions:
    """Run a script of one's own, in which fedmpi.workers() are the other ranks."""

    script: tyro.conf.Positional[str]
    """A Python file; what follows it on the command line is the script's own."""
    workers: int = 0
    """Number of workers; 0: all ranks of the launch but one, 3 without mpirun."""
    memory_mib: int = 0
    """Most memory of the tensors on each worker, in MiB; 0: no limit but the node's memory."""
    data: str = ""
    """Folder of prepared shards, one for each worker: search("#train", "#x") finds them."""
    private: bool = False
    """The workers keep their shards, and what is computed from them, to themselves."""
    threads: int = 1
    """PyTorch threads of each rank; part of the result's bits, hence never chosen by itself."""
    secure_transport: bool = False
    """Seal every message by AES-GCM, for fabrics that are shared with others."""
    key_file: str = ""
    """Its secret, on every node; empty: a new one in the owner's home, which all nodes share."""


@dataclass(frozen=True)
class DealOptions:
    """Compute beforehand what a saved plan over shared tensors needs of the dealer."""

    plan: tyro.conf.Positional[str]
    """File of the plan: fm.plan(step, masks_outside=False).record(...).save(FILE)."""
    runs: int = 100
    """How many times the plan is to run."""
    parties: int = 2
    """How many workers share the secrets."""
    out: str = ""
    """The HDF5 file to write; by default the plan's name and `.material`."""


@dataclass(frozen=True)
class BenchOptions:
    """Measure comm (messages beside plain MPI's), clients (training) or owner (its workers)."""


@dataclass(frozen=True)
class BenchCommOptions:
    """Compare messages, broadcast and sum with plain MPI's, as tables and a PNG."""

    most_mib: int = 64
    """Size of the longest message, in MiB."""
    chunk_kib: int = CommConfig.chunk_kib
    """Size of the pieces in which long vectors travel down and up the tree."""
    out: str = "runs"
    """Folder for comm-N.json and comm-N.png."""


@dataclass(frozen=True)
class BenchClientsOptions(JobOptions):
    """Measure what a client's training costs a worker, for predict; takes the options of run."""

    out: str = "runs"
    """Folder for clients-MODEL-bBATCH.json."""


@dataclass(frozen=True)
class BenchOwnerOptions:
    """Replay rounds of an owner whose workers are played: its time and memory by their number."""

    workers: tuple[int, ...] = (10, 100, 1000, 4000)
    """Numbers of workers."""
    ways: tuple[Literal["tree", "star", "shares"], ...] = ("tree", "star")
    """Topologies, in the clear; shares: secure aggregation on the tree."""
    clients_per_worker: int = 10
    """Clients of each worker."""
    fraction: float = FederatedConfig.fraction
    """Share of the clients that train in a round."""
    model: str = Config.model
    """A model's name, as in run."""
    rounds: int = 3
    """Rounds to be measured, after one that warms up."""
    out: str = "runs"
    """Folder for owner-MODEL.json and owner-MODEL.png."""


@dataclass(frozen=True)
class PredictOptions(JobOptions):
    """Predict what a round takes on a machine, and which part limits it; for a job as in run."""

    ranks: int = 8
    """Ranks, the owner included."""
    nodes: int = 0
    """Nodes over which they are spread; 0: as many as their cores ask for."""
    cores_per_node: int = 64
    """Cores of a node."""
    rows: int = 100
    """Rows of a client."""
    test_rows: int = 10_000
    """Held-out rows."""
    latency_us: float | None = None
    """Microseconds of a message; by default as bench comm has measured, or of a usual fabric."""
    gbit: float | None = None
    """Bandwidth of a rank's link in Gbit/s, likewise."""
    bench: str = "runs"
    """Folder that bench wrote to; what it does not hold is measured now."""
    out: str = ""
    """A JSON file for the prediction."""


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
    if name != "run" and (name in _SUBCOMMANDS or not name.startswith("-")):
        SIGNALS.release()  # only a run knows where to leave
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"fedmpi {fedmpi.__version__}")
    elif name.startswith("-"):
        _run(arguments, crew, launcher)
    elif name in _SUBCOMMANDS:
        _SUBCOMMANDS[name](rest, crew, launcher)
    else:
        known = ", ".join(_SUBCOMMANDS)
        raise UsageError(f"unknown command {name!r}{nearest(name, _SUBCOMMANDS)}: one of {known}")


def _run(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(RunOptions, "run", arguments, _run_defaults(arguments, crew is not None))
    config = _config(chosen)
    with _workers(config.comm, config.data.path, crew, launcher) as workers:
        from fedmpi.study.recorded_run import run

        run(config, workers, _console(launcher), resume=chosen.resume)


def _prepare(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(PrepareOptions, "prepare", arguments)
    recipe = Recipe(**{f.name: getattr(chosen, f.name) for f in fields(Recipe)})
    CommConfig(workers=chosen.workers or "auto")  # refuses an absurd number
    writers = crew if crew and crew.ranks else None
    shards = chosen.workers or (len(writers.ranks) if writers else IN_PROCESS_WORKERS)
    folder = chosen.out or str(Path("data") / Path(recipe.source).stem)
    from fedmpi.workers.shards import prepare

    index = prepare(recipe, shards, folder, writers, chosen.overwrite)
    _console(launcher).print(
        f"{index.rows} rows of {index.clients} clients in {shards} shards, {index.test.rows} rows "
        f"held out: {folder}",
        highlight=False,
        soft_wrap=True,
    )


def _inspect(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    from fedmpi.study.inspect_data import inspect

    plot = inspect(_parse(InspectOptions, "inspect", arguments).folder, _console(launcher))
    print(f"drawn to {plot}")


def _report(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    from fedmpi.study.report import report

    plot = report(Path(_parse(ReportOptions, "report", arguments).folder), _console(launcher))
    print(f"drawn to {plot}")


def _info(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    out = _parse(InfoOptions, "info", arguments).out
    from fedmpi.study.info import show

    show(crew, launcher, _console(launcher), out)


def _exec(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    # What follows the script belongs to the script, options included.
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        alone = "=" in arguments[at] or arguments[at] in _EXEC_FLAGS
        at += 1 if alone else 2
    chosen = _parse(ExecOptions, "exec", arguments[: at + 1])
    if chosen.private and not chosen.data:
        raise UsageError("--private without --data: name the shards that are to be private")
    threads = ComputeConfig(threads=chosen.threads).threads  # refuses an absurd number
    auto = crew is not None or bool(chosen.data)
    comm = CommConfig(
        workers=chosen.workers or ("auto" if auto else EXEC_WORKERS),
        secure_transport=chosen.secure_transport,
        key_file=chosen.key_file,
    )
    with _workers(comm, chosen.data, crew, launcher) as workers:
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


def _deal(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(DealOptions, "deal", arguments)
    from rich.progress import Progress

    from fedmpi.spdz.material import deal
    from fedmpi.tensors.recorded_plan import RecordedPlan

    out = chosen.out or f"{chosen.plan}.material"
    console = _console(launcher)
    with Progress(console=console) as bar:
        task = bar.add_task("dealing", total=chosen.runs)
        plan = RecordedPlan.load(chosen.plan)
        deal(plan, out, chosen.parties, chosen.runs, lambda run: bar.advance(task))
    console.print(f"{out}: {chosen.runs} runs for {chosen.parties} parties")


def _bench(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help"):
        print("usage: python -m fedmpi bench WHAT [OPTIONS]\n")
        for what, (_, options) in _BENCHES.items():
            print(f"  {what:<9}{options.__doc__}")
    elif name in _BENCHES:
        _BENCHES[name][0](rest, crew, launcher)
    else:
        near, known = nearest(name, _BENCHES), ", ".join(_BENCHES)
        raise UsageError(f"bench {name!r}{near}: expected one of {known}")


def _bench_comm(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(BenchCommOptions, "bench comm", arguments)
    chunk = CommConfig(chunk_kib=chosen.chunk_kib).chunk_kib * 1024  # refuses an absurd number
    if not 1 <= chosen.most_mib <= 4096:
        raise UsageError(f"most_mib = {chosen.most_mib}: expected 1 to 4096 MiB")
    from fedmpi.study.bench_comm import bench_comm

    plot = bench_comm(crew, _console(launcher), chosen.most_mib * 2**20, chunk, chosen.out)
    print(f"drawn to {plot}")


_EXEC_FLAGS = (
    "-h",
    "--help",
    "--private",
    "--no-private",
    "--secure-transport",
    "--no-secure-transport",
)


def _bench_clients(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(
        BenchClientsOptions, "bench clients", arguments, _defaults(arguments, BenchClientsOptions)
    )
    from fedmpi.study.bench_clients import bench_clients

    bench_clients(_config(chosen), chosen.out, _console(launcher))


def _bench_owner(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(BenchOwnerOptions, "bench owner", arguments)
    if crew is not None and crew.ranks:
        raise UsageError("bench owner plays its workers itself: run it without mpirun")
    from fedmpi.study.bench_owner import bench_owner

    plot = bench_owner(
        chosen.ways,
        chosen.workers,
        chosen.clients_per_worker,
        chosen.model,
        chosen.fraction,
        chosen.rounds,
        chosen.out,
        _console(launcher),
    )
    print(f"drawn to {plot}")


def _predict(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = _parse(PredictOptions, "predict", arguments, _defaults(arguments, PredictOptions))
    if crew is not None and crew.ranks:
        raise UsageError("predict needs one process: run it without mpirun, with --ranks")
    from fedmpi.study.cost_model import Machine
    from fedmpi.study.show_prediction import show

    cores = chosen.cores_per_node
    nodes = chosen.nodes or -(-chosen.ranks // max(1, cores))
    machine = Machine(chosen.ranks, nodes, cores)
    show(
        _config(chosen),
        machine,
        chosen.rows,
        chosen.test_rows,
        Path(chosen.bench),
        chosen.latency_us,
        chosen.gbit,
        chosen.out,
        _console(launcher),
    )


_BENCHES: dict[str, tuple[Subcommand, type[Any]]] = {
    "comm": (_bench_comm, BenchCommOptions),
    "clients": (_bench_clients, BenchClientsOptions),
    "owner": (_bench_owner, BenchOwnerOptions),
}


_SUBCOMMANDS: dict[str, Subcommand] = {
    "run": _run,
    "prepare": _prepare,
    "inspect": _inspect,
    "report": _report,
    "info": _info,
    "exec": _exec,
    "deal": _deal,
    "bench": _bench,
    "predict": _predict,
}
_DESCRIPTIONS: dict[str, type[Any]] = {
    "run": RunOptions,
    "prepare": PrepareOptions,
    "inspect": InspectOptions,
    "report": ReportOptions,
    "info": InfoOptions,
    "exec": ExecOptions,
    "deal": DealOptions,
    "bench": BenchOptions,
    "predict": PredictOptions,
}


def _help() -> str:
    lines = [
        "usage: python -m fedmpi [COMMAND] [OPTIONS]",
        "       mpirun -n 8 python -m fedmpi [COMMAND] [OPTIONS]",
        "",
        *(f"  {name:<9}{cls.__doc__}" for name, cls in _DESCRIPTIONS.items()),
        "",
        "Without a command: run. `python -m fedmpi COMMAND --help` lists a command's options.",
    ]
    return "\n".join(lines)


def _parse(cls: type[T], name: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Options of a subcommand; a wrong one is refused with the nearest right ones."""
    return tyro.cli(
        cls,
        prog=f"python -m fedmpi {name}",
        args=_apart(arguments),
        default=tyro.MISSING_NONPROP if default is None else default,
    )


def _apart(arguments: Sequence[str]) -> list[str]:
    """`--roundz=3` as two words: only so does tyro find the nearest right name."""
    apart: list[str] = []
    for word in arguments:
        name, _, value = word.partition("=")
        split = name.startswith("--") and value and not value.startswith("-")
        apart += [name, value] if split else [word]
    return apart


def _config(chosen: JobOptions) -> Config:
    """The job that the options of `run`, or of a command that takes them too, ask for."""
    return Config(**{f.name: getattr(chosen, f.name) for f in fields(Config)})


def _run_defaults(arguments: Sequence[str], launched: bool) -> RunOptions:
    """As `_defaults`; with --resume they are those of the run that goes on."""
    run = _value_of("--resume", arguments)
    if not run:
        return _defaults(arguments, RunOptions)
    if path := _value_of("--config", arguments):
        raise UsageError(
            f"--config {path} with --resume {run}, which goes on with its own configuration: "
            "leave one of the two out"
        )
    from fedmpi.study.resume import saved_config

    base = saved_config(Path(run))
    if launched:  # by however many ranks
        base = replace(base, comm=replace(base.comm, workers="auto"))
    return RunOptions(**{f.name: getattr(base, f.name) for f in fields(Config)}, resume=run)


def _defaults(arguments: Sequence[str], cls: type[J]) -> J:
    """What the command line is laid over: the file that it names, over the defaults."""
    path = _value_of("--config", arguments)
    base = from_toml(path) if path else Config()
    # Commands other than `run` have an --out of their own.
    names = [f.name for f in fields(Config) if cls is RunOptions or f.name != "out"]
    return cls(**{name: getattr(base, name) for name in names}, config=path)


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """What follows an option, the last time that it is there."""
    found = ""
    for word, following in pairwise([*arguments, ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


@contextmanager
def _workers(comm: CommConfig, path: str, crew: Crew | None, launcher: str) -> Iterator[Crew]:
    """The workers that a job asks for, their messages sealed if it asks for that too."""
    with _idle_workers(comm, path, crew, launcher) as workers:
        if comm.secure_transport:
            from fedmpi.workers.seal import seal

            seal(workers, comm.key_file)
        yield workers


@contextmanager
def _idle_workers(comm: CommConfig, path: str, crew: Crew | None, launcher: str) -> Iterator[Crew]:
    """The launch's ranks, or threads of this process."""
    wanted = comm.workers if comm.workers != "auto" else _workers_for(path)
    if crew is None:
        if comm.transport == "mpi":
            raise UsageError(
                "transport = 'mpi', but no launcher started this process: "
                f"run mpirun -n {wanted + 1} python -m fedmpi"
            )
        if wanted > MOST_IN_PROCESS_WORKERS:
            raise UsageError(
                f"workers = {wanted}: expected at most {MOST_IN_PROCESS_WORKERS:,} in one process; "
                f"run with mpirun -n {wanted + 1}"
            )
        from fedmpi.workers.in_process import in_process_crew

        with in_process_crew(wanted) as threads:
            yield threads
        return
    ranks = len(crew.ranks) + 1
    if comm.transport == "threads":
        raise UsageError(
            f"transport = 'threads', but {launcher} started {ranks} ranks: run python -m fedmpi "
            "without a launcher"
        )
    if not crew.ranks:
        what = f" for the {wanted} shards in {path}" if path and comm.workers == "auto" else ""
        raise UsageError(
            f"{launcher} started 1 rank, which is the owner: no worker is left{what}; "
            f"run with mpirun -n {wanted + 1}, or without a launcher"
        )
    if comm.workers not in ("auto", ranks - 1):
        raise UsageError(
            f"workers({comm.workers}) + owner(1) != ranks({ranks}): run with "
            f"mpirun -n {int(comm.workers) + 1}, or leave --workers out"
        )
    yield crew


def _workers_for(path: str) -> int:
    """As many workers as there are shards in a folder, if one is named."""
    if not path:
        return IN_PROCESS_WORKERS
    from fedmpi.data.index import read_index

    return len(read_index(path).shards)


def _console(launcher: str) -> Console:
    from rich.console import Console

    # Open MPI gives its ranks a terminal even when its own output goes to a file.
    return Console(file=sys.stdout, force_terminal=False if launcher else None)
