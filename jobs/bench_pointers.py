"""What remote tensors cost: pointers and plans beside plain PyTorch, messages beside raw MPI.

    python -m jobs.bench_pointers          (make bench-pointers)

Training steps, one thread each: the MLP for Boston Housing (13-64-64-1, batch 8 and 64) and
McMahan's 2NN for MNIST (784-200-200-10, batch 10 and 64), SGD. For each:

- plain: PyTorch here, the reference;
- pointers: the same code on pointers, operator by operator;
- plan: the same code recorded, one call a step.

Then an empty round trip and 100 MiB each way, beside mpi4py's Send and Recv of the same bytes
out of the same kind of memory (PyTorch's) into fresh memory, in a launch of its own right
after. Medians of repeats that take turns, so that a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import fedmpi
from fedmpi.tensors.remote_worker import RemoteWorker
from jobs.launched import launch, launch_fedmpi

WORKLOADS = (
    ("Boston MLP", (13, 64, 64, 1), 8),
    ("Boston MLP", (13, 64, 64, 1), 64),
    ("MNIST 2NN", (784, 200, 200, 10), 10),
    ("MNIST 2NN", (784, 200, 200, 10), 64),
)
MEGABYTES = 100


def mlp(sizes: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    optimizer.zero_grad()
    output = model(x)
    loss = F.mse_loss(output, y) if y.is_floating_point() else F.cross_entropy(output, y)
    loss.backward()
    optimizer.step()


def training(worker: RemoteWorker, repeats: int, steps: int) -> None:
    for name, sizes, batch in WORKLOADS:
        torch.manual_seed(0)
        model, x = mlp(sizes), torch.randn(batch, sizes[0])
        y = torch.randn(batch, 1) if sizes[-1] == 1 else torch.randint(0, sizes[-1], (batch,))
        there = worker.send(x), worker.send(y)
        runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
        for kind in ("plain", "pointers", "plan"):
            own = mlp(sizes) if kind == "plain" else worker.send(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
            function = fedmpi.plan(step) if kind == "plan" else step
            data = (x, y) if kind == "plain" else there
            call = functools.partial(function, own, optimizer, *data)
            runs[kind] = (call, (lambda: None) if kind == "plain" else worker.wait)
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for repeat in range(repeats + 1):
            for kind, (call, wait) in runs.items():
                begun = time.perf_counter()
                for _ in range(steps):
                    call()
                wait()
                if repeat:  # the first round warms up
                    seconds[kind].append((time.perf_counter() - begun) / steps)
        median = {kind: statistics.median(found) for kind, found in seconds.items()}
        print(
            f"{name}, batch {batch}: plain {median['plain'] * 1e6:.0f} us a step; "
            + "; ".join(
                f"{kind} {median[kind] * 1e6:.0f} us, {median[kind] / median['plain']:.2f} times"
                for kind in ("pointers", "plan")
            )
        )


def messages(worker: RemoteWorker, repeats: int) -> None:
    trips = []
    for _ in range(50 * repeats):
        begun = time.perf_counter()
        worker.wait()
        trips.append(time.perf_counter() - begun)
    big = torch.ones(MEGABYTES * 2**20 // 4)
    sending, getting = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        pointer = worker.send(big)
        worker.wait()
        sending.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        pointer.get()
        getting.append(time.perf_counter() - begun)
        del pointer
    print(f"empty round trip: {statistics.median(trips) * 1e6:.1f} us")
    for name, seconds in (("send", sending), ("get", getting)):
        print(
            f"{name} of {MEGABYTES} MiB: {MEGABYTES / 1024 / statistics.median(seconds):.2f} GiB/s"
        )


def raw_messages(repeats: int) -> None:
    """The same with nothing but mpi4py."""
    import numpy as np
    from mpi4py import MPI

    world, big = MPI.COMM_WORLD, torch.ones(MEGABYTES * 2**20 // 4).numpy()
    note = np.zeros(1, dtype=np.uint8)
    here = world.rank == 0

    def seconds(count: int, there: Callable[[], object], back: Callable[[], object]) -> float:
        found = []
        for _ in range(count):
            world.Barrier()
            begun = time.perf_counter()
            there() if here else back()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    trip = seconds(
        50 * repeats,
        lambda: (world.Send(note, 1), world.Recv(note, 1)),
        lambda: (world.Recv(note, 0), world.Send(note, 0)),
    )
    bulk = seconds(
        repeats,
        lambda: (world.Send(big, 1), world.Recv(note, 1)),
        lambda: (world.Recv(np.empty_like(big), 0), world.Send(note, 0)),
    )
    if here:
        print(f"raw MPI: round trip {trip * 1e6:.1f} us, {MEGABYTES / 1024 / bulk:.2f} GiB/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=500, help="training steps of a repeat")
    parser.add_argument("--part", choices=("all", "fedmpi", "raw"), default="all")
    chosen = parser.parse_args()
    if chosen.part == "all":
        options = ("--repeats", str(chosen.repeats), "--steps", str(chosen.steps))
        script = ("exec", __file__, "--part", "fedmpi", *options)
        launch_fedmpi(2, *script, quiet=False)
        launch(2, "-m", "jobs.bench_pointers", "--part", "raw", *options, quiet=False)
    elif chosen.part == "raw":
        raw_messages(chosen.repeats)
    else:
        torch.set_num_threads(1)
        [worker, *_] = fedmpi.workers()
        print(f"PyTorch {torch.__version__}; medians of {chosen.repeats} repeats")
        training(worker, chosen.repeats, chosen.steps)
        messages(worker, chosen.repeats)


if __name__ == "__main__":
    main()
