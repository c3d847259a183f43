"""`fedmpi bench owner`: rounds of a real owner whose workers are played, at many sizes.

It answers what breaks in the owner first: its time and its memory per round, by the number of
workers. What its messages take on a network is not in it, nor what workers do.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from fedmpi.comm.endpoint import Endpoint
from fedmpi.config import (
    AggregationConfig,
    CommConfig,
    ComputeConfig,
    Config,
    DataConfig,
    FederatedConfig,
    Recipe,
    require,
)
from fedmpi.data.blocks import Blocks
from fedmpi.data.files import atomic
from fedmpi.data.index import Index, ShardInfo, TestInfo
from fedmpi.data.normalise import Normalisation
from fedmpi.data.shard import Batch
from fedmpi.federated.datasets import ShardedDataset
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.study.memory import forget_peak, peak_bytes, resident_bytes
from fedmpi.study.played_workers import PlayedWorkers
from fedmpi.study.replay import ReplayTransport
from fedmpi.study.units import duration, size
from fedmpi.workers.crew import Crew

if TYPE_CHECKING:
    from rich.console import Console

Way = Literal["tree", "star", "shares"]
ROW_SHAPE, CLASSES, ROWS, TEST_ROWS = (28, 28), 10, 100, 1000
"""Images as those of MNIST; as many rows for each client, and held out."""
MOST_WORKERS, MOST_CLIENTS = 65_536, 10_000_000
NAMES: dict[Way, str] = {"tree": "tree", "star": "star", "shares": "tree, shares"}


@dataclass(frozen=True)
class Point:
    """An owner of so many workers.

    Attributes:
        workers: that it has.
        way: topology, and secure aggregation or none.
        clients: in a round.
        set_up: its seconds before the first round.
        send: seconds per round until all commands and the model are out, the cohort included.
        gather: seconds from there to the new model: the sum, the reports, the strategy.
        bytes_sent: of the owner alone, per round.
        messages_sent: likewise.
        base_bytes: memory of the process before there was a job.
        memory_bytes: by how much its peak in a round is above that.
    """

    workers: int
    way: Way
    clients: int
    set_up: float
    send: float
    gather: float
    bytes_sent: int
    messages_sent: int
    base_bytes: int
    memory_bytes: int


class MadeUp(ShardedDataset):
    """Shards that nobody has prepared: an index as it would be, and held-out rows of zeros.

    Args:
        workers: shards.
        clients: of each shard.
    """

    def __init__(self, workers: int, clients: int) -> None:
        shard = ShardInfo("made-up.h5", clients * ROWS, clients, "0" * 64)
        index = Index(
            dataset="0" * 64,
            source="made-up",
            task="classification",
            row_shape=ROW_SHAPE,
            dtype="float32",
            classes=CLASSES,
            recipe=Recipe(source="made-up", clients=workers * clients),
            normalisation=Normalisation(),
            shards=(shard,) * workers,
            test=TestInfo("made-up-test.h5", TEST_ROWS, "0" * 64),
        )
        super().__init__(Path("made-up"), index, 2048, False)

    def test(self) -> Blocks:
        def read() -> Iterator[Batch]:
            yield torch.zeros(TEST_ROWS, *ROW_SHAPE), torch.zeros(TEST_ROWS, dtype=torch.int64)

        return Blocks(read, self.cache_mib)


def config_of(
    way: Way, workers: int, clients: int, model: str, fraction: float, rounds: int
) -> Config:
    """The job whose owner is replayed."""
    return Config(
        model=model,
        data=DataConfig(source="made-up", clients=workers * clients),
        federated=FederatedConfig(
            rounds=rounds,
            fraction=fraction,
            epochs=1,
            eval_every=rounds,
            secure=AggregationConfig(kind="shares" if way == "shares" else "none"),
        ),
        comm=CommConfig(topology="star" if way == "star" else "tree"),
        compute=ComputeConfig(device="cpu"),
    )


def replay(config: Config, workers: int, clients: int) -> Point:
    """Plays the rounds of a job, two or more, of which the first warms up; medians.

    Args:
        config: of the job: its clients are workers x clients.
        workers: that the owner has.
        clients: of each worker.
    """
    transport = ReplayTransport(PlayedWorkers(config, clients, ROWS), workers + 1)
    base = resident_bytes()
    begun = time.perf_counter()
    job = Job(config, Crew(Endpoint(transport)), dataset=MadeUp(workers, clients))
    set_up = time.perf_counter() - begun - transport.played_seconds
    found: list[tuple[float, float, int, int, int, int]] = []
    before = (transport.played_seconds, transport.bytes_sent, transport.messages_sent)

    def after(metrics: RoundMetrics) -> None:
        nonlocal before
        now = (transport.played_seconds, transport.bytes_sent, transport.messages_sent)
        played, nbytes, messages = (a - b for a, b in zip(now, before, strict=True))
        # The cohort is drawn before the phases begin.
        cohort = metrics.seconds - sum(metrics.phases.values())
        send = metrics.phases["broadcast"] + cohort
        gather = metrics.seconds - send - metrics.phases["evaluate"] - played
        memory = peak_bytes() - base
        found.append((send, gather, int(nbytes), int(messages), memory, metrics.clients))
        before = now
        forget_peak()

    job.run(Observer(after, lambda clients: None))
    send, gather, nbytes, messages, memory, cohort = (
        statistics.median(column) for column in zip(*found[1:], strict=True)
    )
    shares = config.federated.secure.kind == "shares"
    return Point(
        workers,
        "shares" if shares else config.comm.topology,
        int(cohort),
        set_up,
        send,
        gather,
        int(nbytes),
        int(messages),
        base,
        int(memory),
    )


def bench_owner(
    ways: Sequence[Way],
    workers: Sequence[int],
    clients: int,
    model: str,
    fraction: float,
    rounds: int,
    out: str,
    console: Console,
) -> Path:
    """Replays all sizes, prints a table, and writes owner-MODEL.json and owner-MODEL.png.

    Every size has a process of its own: the memory of one is not that of another.

    Args:
        ways: topologies and aggregations.
        workers: sizes.
        clients: of each worker.
        model: its name.
        fraction: of the clients that train in a round.
        rounds: of each size.
        out: folder, made if need be.
        console: where to print.

    Returns:
        The PNG.

    Raises:
        UsageError: a number is out of range, or the model cannot be.
    """
    require(
        bool(workers) and all(1 <= n <= MOST_WORKERS for n in workers),
        "workers",
        list(workers),
        f"one number or more of 1 to {MOST_WORKERS:,}",
    )
    require(bool(ways), "ways", list(ways), "one or more of tree, star and shares")
    require(
        1 <= clients <= MOST_CLIENTS // max(workers),
        "clients_per_worker",
        clients,
        f"1 or more, and at most {MOST_CLIENTS:,} clients in all",
    )
    require(1 <= rounds <= 1000, "rounds", rounds, "1 to 1000 rounds")
    configs = [
        config_of(way, count, clients, model, fraction, rounds + 1)
        for way in ways
        for count in sorted(workers)
    ]
    points = []
    for config in configs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            count = config.data.clients // clients
            points.append(process.submit(replay, config, count, clients).result())
        console.print(_said(points[-1]), highlight=False, soft_wrap=True)
    _print(points, console)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": model,
        "clients_per_worker": clients,
        "fraction": fraction,
        "rounds": rounds,
        "points": [asdict(point) for point in points],
    }
    with atomic(folder / f"owner-{model}.json") as temporary:
        Path(temporary).write_text(json.dumps(record, indent=1))
    from fedmpi.study.plot_owner import draw

    plot = folder / f"owner-{model}.png"
    draw(points, plot, f"the owner of {model}, {clients} clients per worker")
    return plot


def _said(point: Point) -> str:
    seconds = duration(point.send + point.gather)
    return f"{NAMES[point.way]}, {point.workers:,} workers: {seconds} per round"


def _print(points: Sequence[Point], console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="the owner's part of a round", title_justify="left")
    table.add_column("way")
    for name in ("workers", "clients", "set up", "send", "gather", "sends", "messages", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        times = (point.set_up, point.send, point.gather)
        table.add_row(
            NAMES[point.way],
            f"{point.workers:,}",
            f"{point.clients:,}",
            *map(duration, times),
            size(point.bytes_sent),
            f"{point.messages_sent:,}",
            size(point.memory_bytes),
        )
    console.print(table)
