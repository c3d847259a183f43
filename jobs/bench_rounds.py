"""What a round costs beside its training, and what more ranks than cores cost.

    python jobs/bench_rounds.py --root MNIST_FOLDER       (make bench ARGS="--root MNIST_FOLDER")

The workload: MNIST, 100 clients of 600 digits, all of them in every round, McMahan's 2NN,
E = 1, B = 10, lr 0.1, evaluation every 5 rounds. Without --root it takes the 5,000 digits
that need no download; their rounds are 15 times shorter, so that the overhead weighs more.

References, measured in the same run: the training time that the workers themselves
report, and a plain PyTorch loop over the same clients in one process, without FedMPI.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIENTS = 100


def launch(ranks: int, *arguments: str) -> None:
    """Runs a FedMPI command under the mpirun beside this Python, or the one on the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    command = [str(beside) if beside.exists() else "mpirun", "-n", str(ranks), sys.executable]
    subprocess.run([*command, "-m", "fedmpi", *arguments], check=True, stdout=subprocess.DEVNULL)


def rounds_of(folder: Path, shards: Path, ranks: int, rounds: int) -> list[dict]:
    """A run's records, without the first round, in which memory is still cold."""
    launch(
        ranks, "run", "--path", str(shards), "--out", str(folder.parent), "--name", folder.name,
        "--model", "2nn", "--fraction", "1", "--epochs", "1", "--batch-size", "10", "--lr", "0.1",
        "--rounds", str(rounds), "--eval-every", "5",
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines[1:]


def plain_seconds(shards: Path, clients: int) -> float:
    """Seconds of one client-epoch in plain PyTorch: tensors, autograd, optim.SGD, one thread."""
    import torch

    from fedmpi import models
    from fedmpi.data.index import read_index
    from fedmpi.data.shard import open_shard

    torch.set_num_threads(1)
    index = read_index(shards)
    shard = open_shard(shards, index, 0, cache_mib=2048)
    model = models.build("2nn", index.row_shape, index.classes)
    seconds = []
    for client in shard.ids[:clients]:
        x, y = shard.load(client)
        begun = time.perf_counter()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for rows in torch.randperm(len(x)).split(10):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


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
    scratch = Path(tempfile.mkdtemp(prefix="fedmpi-bench-"))
    try:
        measure(chosen, scratch)
    finally:
        shutil.rmtree(scratch)


def measure(chosen: argparse.Namespace, scratch: Path) -> None:
    """Runs both numbers of ranks in turn, so that a slow minute of the machine hits both."""
    source = ["mnist", "--root", chosen.root] if chosen.root else ["mnist5k"]
    for ranks in chosen.ranks:
        launch(ranks, "prepare", *source, "--clients", str(CLIENTS), "--out", f"{scratch}/{ranks}")
    plain = []
    runs: dict[int, list[list[dict]]] = {ranks: [] for ranks in chosen.ranks}
    for repeat in range(chosen.repeats):
        plain.append(plain_seconds(scratch / str(chosen.ranks[0]), 20))
        for ranks in chosen.ranks:
            shards, folder = scratch / str(ranks), scratch / f"run-{ranks}-{repeat}"
            runs[ranks].append(rounds_of(folder, shards, ranks, chosen.rounds))
    print(f"{source[0]}, {CLIENTS} clients a round, {os.cpu_count()} cores; medians of rounds")
    print(f"plain PyTorch loop: {statistics.median(plain) * 1e3:.1f} ms per client-epoch")
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
    few, many = chosen.ranks
    workers = min(few - 1, os.cpu_count() or 1)
    print(f"-n {many} / -n {few}: {rate[many] / rate[few]:.2f} of the throughput")
    print(
        f"-n {few} against {workers} plain loops side by side: "
        f"{rate[few] * statistics.median(plain) / workers:.2f} times their throughput"
    )


if __name__ == "__main__":
    main()
