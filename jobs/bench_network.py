"""What a network costs: trees against bandwidth, remote tensors against latency.

    python -m jobs.bench_network --out FOLDER          (make bench-network, as root)

Hosts are the network namespaces of jobs/cluster.py. Rounds of the CNN (1.66 million weights, 6.7
MB to every worker and 13.3 MB back) on 8 ranks, 28 clients of 16 MNIST digits each:

- eight hosts, a rank each: the binomial tree beside the star;
- four hosts, two ranks each, dealt round as mpirun does: the tree of nodes beside the plain tree.

Then a training step on remote tensors (the MLP of Boston Housing, batch 64) on another host, up to
the loss that the owner reads: every operator waited for, operators sent ahead, and one plan.

Every part appends its points to FOLDER/points.jsonl; `--part plot` makes the table and the
figures of all that is in there, medians with the least and the most. So parts may run when the
machine is free.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster import Cluster, mpi_of
from jobs.launched import mpirun, warm_records

RATES = ("10gbit", "1gbit", "250mbit", "100mbit")
DELAYS_MS = (0.0, 0.1, 1.0, 5.0)
RANKS = 8
PLAIN = ("--hierarchy-above", "65536")
TREES = {
    "star, 8 hosts": (8, ("--topology", "star", *PLAIN)),
    "tree, 8 hosts": (8, PLAIN),
    "tree, 4 hosts": (4, PLAIN),
    "tree of nodes, 4 hosts": (4, ()),
}
STEPS = ("each operator waited for", "operators sent ahead", "plan")


def run(cluster: Cluster, ranks: int, *arguments: str) -> str:
    """A program on the ranks, dealt round the hosts, by the mpirun beside this Python."""
    mpi = mpi_of(mpirun())
    command = [*cluster.on("node0"), mpirun(), *cluster.placed(mpi), "-n", str(ranks)]
    environment = os.environ | cluster.environment(mpi) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# ---- trees against bandwidth ----


def rounds(cluster: Cluster, shards: Path, options: Sequence[str], count: int) -> list[float]:
    """Seconds of each round but the first, without evaluation."""
    with tempfile.TemporaryDirectory(prefix="fedmpi-bench-") as out:
        run(
            cluster, RANKS, "-m", "fedmpi", "run", "--path", str(shards), "--model", "cnn",
            "--fraction", "0.1", "--epochs", "1", "--rounds", str(count + 1), "--eval-every",
            str(count + 1), "--out", out, "--name", "bench", *options,
        )  # fmt: skip
        found = warm_records(Path(out) / "bench")
    return [line["seconds"] - line["phases"]["evaluate"] for line in found]


def bandwidth(rates: Sequence[str], trees: Sequence[str], count: int, record: Callable) -> None:
    with tempfile.TemporaryDirectory(prefix="fedmpi-bench-") as folder:
        shards = Path(folder) / "shards"
        prepare = ["prepare", "mnist5k", "--clients", "280", "--workers", str(RANKS - 1)]
        command = [sys.executable, "-m", "fedmpi", *prepare, "--out", str(shards)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for hosts in sorted({TREES[tree][0] for tree in trees}):
            with Cluster(hosts) as cluster:
                for rate in rates:
                    cluster.limit(rate)
                    for tree in trees:
                        if TREES[tree][0] == hosts:
                            before = cluster.traffic()
                            seconds = rounds(cluster, shards, TREES[tree][1], count)
                            sent = [
                                b.sent - a.sent
                                for a, b in zip(before, cluster.traffic(), strict=True)
                            ]
                            record(part="bandwidth", what=tree, at=rate, seconds=seconds,
                                   sent=[round(n / (count + 1)) for n in sent])  # fmt: skip


# ---- remote tensors against latency ----


def latency(delays_ms: Sequence[float], record: Callable) -> None:
    for delay in delays_ms:
        with Cluster(2, delay=delay / 1000) as cluster:
            script = ["-m", "fedmpi", "exec", __file__, "--part", "steps"]
            for line in run(cluster, 2, *script).splitlines():
                record(part="latency", at=delay, **json.loads(line))


def steps() -> None:
    """Runs on the owner, under `fedmpi exec`: prints the seconds of each way to make a step."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.utils._python_dispatch import TorchDispatchMode

    import fedmpi

    torch.set_num_threads(1)
    [worker] = fedmpi.workers()

    class Waiting(TorchDispatchMode):
        """Waits for each operator before the next is sent."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = function(*args, **(kwargs or {}))
            worker.wait()
            return result

    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def waiting(*arguments: Any) -> Any:
        with Waiting():
            return step(*arguments)

    x, y = worker.send(torch.randn(64, 13)), worker.send(torch.randn(64, 1))
    calls = {}
    for name, function in zip(STEPS, (waiting, step, fedmpi.plan(step)), strict=True):
        model = nn.Sequential(
            nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        there = worker.send(model)
        optimizer = torch.optim.SGD(there.parameters(), lr=0.01)
        calls[name] = functools.partial(function, there, optimizer, x, y)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    trips = []
    for repeat in range(23):
        for name, call in calls.items():
            worker.wait()
            begun = time.perf_counter()
            call().get()
            if repeat >= 3:  # the first ones warm up
                seconds[name].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        worker.wait()
        trips.append(time.perf_counter() - begun)
    seconds["empty round trip"] = trips[3:]
    for name, found in seconds.items():
        print(json.dumps({"what": name, "seconds": found}))


# ---- table and figures ----


def plot(out: Path) -> None:
    points = [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()]
    found: dict[tuple[str, str, Any], list[float]] = {}
    for point in points:
        found.setdefault((point["part"], point["what"], point["at"]), []).extend(point["seconds"])
    _table(found)
    _figure(found, "bandwidth", _gigabits, "Gbit/s of every interface", "seconds a round", out)
    _figure(found, "latency", lambda ms: ms, "ms from host to host", "ms a training step", out)


def _gigabits(rate: str) -> float:
    return float(rate[:-4]) / {"gbit": 1, "mbit": 1000}[rate[-4:]]


def _table(found: dict[tuple[str, str, Any], list[float]]) -> None:
    """Prints one table for each part; a cell is empty where nothing was measured."""
    kinds = (("bandwidth", "s", 1, _gigabits), ("latency", "ms", 1000, float))
    for part, unit, factor, number in kinds:
        places = sorted({at for kind, _, at in found if kind == part}, key=number)
        print(f"\n| {part} | " + " | ".join(f"{at}" for at in places) + " |")
        print("| --- |" + " ---: |" * len(places))
        for what in dict.fromkeys(what for kind, what, _ in found if kind == part):
            cells = []
            for at in places:
                values = [v * factor for v in found.get((part, what, at), [])]
                cells.append(_cell(values, unit) if values else "")
            print(f"| {what} | " + " | ".join(cells) + " |")


def _cell(values: Sequence[float], unit: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3g} {unit} ({low:.3g} to {high:.3g}; {len(values)})"


def _figure(
    found: dict[tuple[str, str, Any], list[float]],
    part: str,
    place: Callable[[Any], float],
    across: str,
    up: str,
    out: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    factor = 1000 if part == "latency" else 1
    for what in dict.fromkeys(what for kind, what, _ in found if kind == part):
        values = sorted(
            (place(at), [v * factor for v in seconds])
            for (kind, name, at), seconds in found.items()
            if (kind, name) == (part, what)
        )
        middle = [statistics.median(v) for _, v in values]
        spread = [
            [m - min(v) for m, (_, v) in zip(middle, values, strict=True)],
            [max(v) - m for m, (_, v) in zip(middle, values, strict=True)],
        ]
        axes.errorbar([at for at, _ in values], middle, spread, marker="o", capsize=3, label=what)
    if part == "bandwidth":
        axes.set_xscale("log")
        axes.invert_xaxis()
    else:
        axes.set_xscale("symlog", linthresh=0.1)
    measured = sorted({place(at) for kind, _, at in found if kind == part})
    axes.set_xticks(measured, [f"{at:g}" for at in measured])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if part == "bandwidth" else "")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(out / f"network-{part}.png", dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = ("all", "bandwidth", "latency", "plot", "steps")
    parser.add_argument("--part", choices=parts, default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-network"))
    parser.add_argument("--rates", nargs="+", default=RATES, help="as tc writes them")
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--delays-ms", nargs="+", type=float, default=DELAYS_MS)
    parser.add_argument("--rounds", type=int, default=4, help="of each run, beside the first")
    chosen = parser.parse_args()
    if chosen.part == "steps":
        return steps()

    def record(**point: Any) -> None:
        print(f"{point['what']} at {point['at']}: {statistics.median(point['seconds']):.4g} s")
        with (chosen.out / "points.jsonl").open("a") as file:
            file.write(json.dumps(point) + "\n")

    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.part in ("all", "bandwidth"):
        bandwidth(chosen.rates, chosen.trees, chosen.rounds, record)
    if chosen.part in ("all", "latency"):
        latency(chosen.delays_ms, record)
    if chosen.part in ("all", "plot"):
        plot(chosen.out)


if __name__ == "__main__":
    main()
