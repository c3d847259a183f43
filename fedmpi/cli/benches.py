"""`bench` and what it can measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmpi.cli.console import console_of
from fedmpi.cli.options import BenchClientsOptions, BenchCommOptions, BenchOwnerOptions
from fedmpi.cli.parsing import Subcommand, config_of, defaults, parse
from fedmpi.config import CommConfig, nearest
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.crew import Crew


def bench(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help"):
        print("usage: python -m fedmpi bench WHAT [OPTIONS]\n")
        for what, (_, options) in BENCHES.items():
            print(f"  {what:<9}{options.__doc__}")
    elif name in BENCHES:
        BENCHES[name][0](rest, crew, launcher)
    else:
        near, known = nearest(name, BENCHES), ", ".join(BENCHES)
        raise UsageError(f"bench {name!r}{near}: expected one of {known}")


def comm(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(BenchCommOptions, "bench comm", arguments)
    chunk = CommConfig(chunk_kib=chosen.chunk_kib).chunk_kib * 1024  # refuses an absurd number
    if not 1 <= chosen.most_mib <= 4096:
        raise UsageError(f"most_mib = {chosen.most_mib}: expected 1 to 4096 MiB")
    from fedmpi.study.bench_comm import bench_comm

    plot = bench_comm(crew, console_of(launcher), chosen.most_mib * 2**20, chunk, chosen.out)
    print(f"drawn to {plot}")


def clients(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(
        BenchClientsOptions, "bench clients", arguments, defaults(arguments, BenchClientsOptions)
    )
    from fedmpi.study.bench_clients import bench_clients

    bench_clients(config_of(chosen), chosen.out, console_of(launcher))


def owner(arguments: Sequence[str], crew: Crew | None, launcher: str) -> None:
    chosen = parse(BenchOwnerOptions, "bench owner", arguments)
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
        console_of(launcher),
    )
    print(f"drawn to {plot}")


BENCHES: dict[str, tuple[Subcommand, type]] = {
    "comm": (comm, BenchCommOptions),
    "clients": (clients, BenchClientsOptions),
    "owner": (owner, BenchOwnerOptions),
}
