"""`fedmpi predict`: what a round will take, as a table that says which part limits it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmpi.config import Config, DataConfig, SecureKind, require
from fedmpi.data.files import atomic
from fedmpi.study.bench_clients import Costs, measure, path_of, read
from fedmpi.study.bench_owner import replay
from fedmpi.study.cost_model import Link, Machine
from fedmpi.study.fit import fit_collective, fit_messages, read_comm
from fedmpi.study.predict import predict
from fedmpi.study.predictable import refuse
from fedmpi.study.prediction import Network, OwnerCosts, Prediction, link_of
from fedmpi.study.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console

FABRIC = "HDR InfiniBand as assumed (100 Gbit/s, 10 us a message with FedMPI's part)"
FABRIC_LATENCY_US, FABRIC_GBIT = 10.0, 100.0
MOST_REPLAYED = 1000
"""Workers of a replay that a prediction waits for; with more, what it gives is scaled."""
MASKING_WORKERS, MASKING_CLIENTS = 20, 4
MESSAGES = {"none": 5, "shares": 9}
"""Of the owner and a worker in a round: commands and replies."""


def network_of(folder: Path, latency_us: float | None, gbit: float | None, costs: Costs) -> Network:
    """The network as it is given, else as `bench comm` has measured it, else a usual fabric.

    Args:
        folder: with comm-N.json; the file with most ranks is taken.
        latency_us: of a message.
        gbit: bandwidth.
        costs: what adding takes.

    Raises:
        UsageError, DataError: a number or a file cannot be used.
    """
    files = {int(m[1]): p for p in folder.glob("comm-*.json") if (m := _NUMBER.fullmatch(p.name))}
    if latency_us is None and gbit is None and files:
        path = files[max(files)]
        comm = read_comm(path)
        down, up = fit_collective(comm, "broadcast"), fit_collective(comm, "sum")
        return Network(
            down.link,
            up.link,
            fit_messages(comm, "mpi").link.alpha,
            f"fitted to {path} ({comm.library}, {comm.ranks} ranks, {comm.cores} cores), off by "
            f"{100 * down.typical:.0f} % and {100 * up.typical:.0f} % (medians of broadcast, sum)",
        )
    link = link_of(
        FABRIC_LATENCY_US if latency_us is None else latency_us,
        FABRIC_GBIT if gbit is None else gbit,
    )
    stated = f"as given: {1e6 * link.alpha:g} us, {8e-9 / link.beta:g} Gbit/s"
    given = latency_us is not None or gbit is not None
    reduce = Link(link.alpha, link.beta + costs.sum_byte)
    return Network(link, reduce, link.alpha, stated if given else FABRIC)


def owner_of(config: Config, machine: Machine) -> OwnerCosts:
    """Replays the owner's part of this very job, or of one with fewer workers."""
    workers = machine.ranks - 1
    played = min(workers, MOST_REPLAYED)
    per_worker = max(1, round(config.data.clients / workers))
    point = replay(_played(config, "none", played * per_worker), played, per_worker)
    scale = workers / played
    opening = 0.0
    secure = config.federated.secure.kind
    if secure != "none":
        here = MASKING_WORKERS, MASKING_CLIENTS
        kinds: tuple[SecureKind, ...] = ("none", secure)
        clear, masked = (replay(_played(config, k, here[0] * here[1]), *here) for k in kinds)
        opening = max(masked.gather - clear.gather, 0.0) / masked.clients
    messages = MESSAGES[secure] * min(workers, round(scale * point.clients))
    return OwnerCosts(scale * point.send, scale * point.gather, messages, opening)


def _played(config: Config, kind: SecureKind, clients: int) -> Config:
    federated = config.federated
    secure = replace(federated.secure, kind=kind)
    fraction = 1.0 if kind != "none" else federated.fraction
    return replace(
        config,
        data=DataConfig(source="made-up", clients=clients),
        federated=replace(
            federated, rounds=3, eval_every=3, secure=secure, fraction=fraction, mode="shards"
        ),
        comm=replace(config.comm, workers="auto", transport="auto"),
        compute=replace(config.compute, device="cpu"),
    )


def show(
    config: Config,
    machine: Machine,
    rows: int,
    test_rows: int,
    folder: Path,
    latency_us: float | None,
    gbit: float | None,
    out: str,
    console: Console,
) -> Prediction:
    """Measures what is not known, predicts, prints, and writes JSON if asked to.

    Args:
        config: of the job.
        machine: where it is to run.
        rows: of a client.
        test_rows: held out.
        folder: where `bench` has written to.
        latency_us: of a message; None: as measured.
        gbit: bandwidth; None: as measured.
        out: JSON file; empty: none.
        console: where to print.

    Raises:
        UsageError, DataError: see `predict`, `read`, `read_comm`.
    """
    refuse(config, machine)
    require(rows >= 1, "rows", rows, "at least 1 row for each client")
    require(test_rows >= 0, "test_rows", test_rows, "0 or more rows")

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    kept = path_of(folder, config)
    costs = read(kept) if kept.exists() else measure(config)
    network = network_of(folder, latency_us, gbit, costs)
    owner = owner_of(config, machine)
    found = predict(config, machine, rows, test_rows, costs, network, owner)
    spread = found.load
    say(
        f"{config.model}, {config.data.clients:,} clients of {rows} rows, {spread.cohort:,} a "
        f"round; {machine.ranks:,} ranks on {machine.nodes:,} nodes of {machine.cores} cores"
    )
    say(f"network: {network.source}")
    say(f"training: {_source(kept)}; {1e6 * costs.row:.3g} us per row and epoch")
    say(
        f"a worker with clients has {spread.mean:.3g} of them on average, the fullest "
        f"{spread.largest:.3g}"
    )
    _print(found, console)
    say(f"sent: {size(found.bytes_sent)} per round, by all ranks together")
    limit = found.limit
    share = 100 * limit.seconds / found.seconds
    say(f"limited by: {limit.name} ({share:.0f} %)")
    say(f"what would help: {limit.remedy}")
    if out:
        _write(Path(out), found, machine, network, costs, owner)
    return found


def _source(kept: Path) -> str:
    return f"from {kept}" if kept.exists() else "measured just now"


def _print(found: Prediction, console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("phase", no_wrap=True)
    table.add_column("part")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for part in found.parts:
        share = f"{100 * part.seconds / found.seconds:.1f} %"
        style = "bold" if part is found.limit else None
        table.add_row(part.phase, part.name, duration(part.seconds), share, style=style)
    table.add_section()
    table.add_row("", "a round", duration(found.seconds), "")
    console.print(table)


def _write(
    path: Path,
    found: Prediction,
    machine: Machine,
    network: Network,
    costs: Costs,
    owner: OwnerCosts,
) -> None:
    record = {
        "seconds": found.seconds,
        "limit": found.limit.name,
        "phases": found.phases(),
        "parts": [asdict(part) for part in found.parts],
        "load": asdict(found.load),
        "bytes_sent": found.bytes_sent,
        "machine": asdict(machine),
        "network": asdict(network),
        "costs": asdict(costs),
        "owner": asdict(owner),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Path(temporary).write_text(json.dumps(record, indent=1))


_NUMBER = re.compile(r"comm-(\d+)\.json")
