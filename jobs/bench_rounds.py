"""What a round costs beside its training, and what more ranks than cores cost.

    python -m jobs.bench_rounds --root MNIST_FOLDER       (make bench ARGS="--root MNIST_FOLDER")

The workload: MNIST, 100 clients of 600 digits, all of them in every round, McMahan's 2NN,
E = 1, B = 10, lr 0.1, evaluation every 5 rounds. Without --root it takes the 5,000 digits
that need no download; their rounds are 15 times shorter, so that the overhead weighs more.

References, measured in the same run: the training time that the workers themselves
report, and plain PyTorch loops, one process per worker side by side on the same clients,
without FedMPI. How long they wait for the slowest of them is the machine's share of ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from jobs.launched import launch_fedmpi, warm_records

CLIENTS = 100


def rounds_of(folder: Path, shards: Path, ranks: int, rounds: int) -> list[dict]:
    """A run's records, without the first round, in which memory is still cold."""
    launch_fedmpi(
        ranks, "run", "--path", str(shards), "--out", str(folder.parent), "--name", folder.name,
        "--model", "2nn", "--fraction", "1", "--epochs", "1", "--batch-size", "10", "--lr", "0.1",
        "--rounds", str(rounds), "--eval-every", "5",
    )  # fmt: skip
    return warm_records(folder)


def plain_loop(shards: Path, worker: int, start: Barrier, seconds: Queue) -> None:
    """A worker's clients in plain PyTorch: tensors, autograd, optim.SGD, one thread."""
    import torch

    from fedmpi import models
    from fedmpi.data.index import read_index
    from fedmpi.data.shard import open_shard

    torch.set_num_threads(1)
    index = read_index(shards)
    shard = open_shard(shards, index, worker, cache_mib=2048)
    model = models.build("2nn", index.row_shape, index.classes)
    clients = [shard.load(client) for client in shard.ids]

    def train(x: torch.Tensor, y: torch.Tensor) -> None:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for rows in torch.randperm(len(x)).split(10):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()

    train(*clients[0])  # PyTorch imports much at its first optimiser
    start.wait()
    begun = time.perf_counter()
    for x, y in clients:
        train(x, y)
    seconds.put(time.perf_counter() - begun)


def plain_seconds(shards: Path, workers: int) -> list[float]:
    """Seconds of a plain loop per worker, all side by side, each over its own clients."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(workers), context.Queue()
    loops = [
        context.Process(target=plain_loop, args=(shards, worker, start, seconds))
        for worker in range(workers)
    ]
    for loop in loops:
        loop.start()
    found = [seconds.get() for _ in loops]
    for loop in loops:
        loop.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", default="", help="folder with the IDX files of MNIST")
    parser.add_argument("--rounds", type=int, default=11, help="of each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number of ranks")
    parser.add_argument("--ranks", type=int, nargs=2, default=(3, 8), metavar=("FEW", "MANY"))
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="fedmpi-bench-") as scratch:
        measure(chosen, Path(scratch))


def measure(chosen: argparse.Namespace, scratch: Path) -> None:
    """Runs both numbers of ranks in turn, so that a slow minute of the machine hits both."""
    source = ["mnist", "--root", chosen.root] if chosen.root else ["mnist5k"]
    for ranks in chosen.ranks:
        launch_fedmpi(
            ranks, "prepare", *source, "--clients", str(CLIENTS), "--out", f"{scratch}/{ranks}"
        )
    few, many = chosen.ranks
    plain = []
    runs: dict[int, list[list[dict]]] = {ranks: [] for ranks in chosen.ranks}
    for repeat in range(chosen.repeats):
        plain.append(plain_seconds(scratch / str(few), few - 1))
        for ranks in chosen.ranks:
            shards, folder = scratch / str(ranks), scratch / f"run-{ranks}-{repeat}"
            runs[ranks].append(rounds_of(folder, shards, ranks, chosen.rounds))
    print(f"{source[0]}, {CLIENTS} clients a round, {os.cpu_count()} cores; medians of rounds")
    plain_rate = statistics.median(CLIENTS / max(seconds) for seconds in plain)
    apart = statistics.median(1 - statistics.fmean(seconds) / max(seconds) for seconds in plain)
    print(
        f"{few - 1} plain PyTorch loops side by side: {plain_rate:.1f} client-epochs/s; "
        f"waiting for the slowest {100 * apart:.1f} %"
    )
    rate = {}
    for ranks, repeats in runs.items():
        lines = [line for repeat in repeats for line in repeat]

        def share(phase: str, lines: list[dict] = lines) -> float:
            return 100 * statistics.median(m["phases"][phase] / m["seconds"] for m in lines)

        bare = [m["seconds"] - m["phases"]["evaluate"] for m in lines]
        rate[ranks] = statistics.median(CLIENTS / seconds for seconds in bare)
        overhead = statistics.median(
            1 - m["phases"]["train"] / seconds for m, seconds in zip(lines, bare, strict=True)
        )
        idle = sum(m["idle_cpu"] for m in lines) / sum(m["idle_seconds"] for m in lines)
        slowest = statistics.median(
            1 - m["train_max"] / seconds for m, seconds in zip(lines, bare, strict=True)
        )
        print(
            f"-n {ranks}: {statistics.median(bare):.3f} s a round, "
            f"{rate[ranks]:.1f} client-epochs/s; not training {100 * overhead:.1f} % "
            f"(broadcast {share('broadcast'):.1f}, aggregate {share('aggregate'):.1f}, "
            f"wait {share('wait'):.1f}; "
            f"{100 * slowest:.1f} % beside the slowest worker's training); "
            f"owner waiting: {100 * idle:.1f} % of a core"
        )
    print(f"-n {many} / -n {few}: {rate[many] / rate[few]:.2f} of the throughput")
    print(f"-n {few} / plain loops: {rate[few] / plain_rate:.2f} of the throughput")


if __name__ == "__main__":
    main()
