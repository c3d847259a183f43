"""What a client's training costs: the recorded step beside plain PyTorch.

    python -m jobs.bench_clients          (make bench-clients)

One client of 600 rows of 28 x 28 pixels and 10 classes, random values, E = 1, B = 10, lr 0.1,
one thread. For softmax regression, McMahan's 2NN and CNN, and LeNet:

- plain: tensors, `loss.backward()` and `optim.SGD`, the reference;
- autograd: FedMPI's loop without a recording, as models train that cannot be recorded;
- recorded: FedMPI's loop with the recorded step, one client alone;
- stacked: as many clients at a time as `compute.stack = "auto"` takes, per client; without
  convolutions.

Then what adding the client's update to the exact sum costs, in one compiled pass and with
PyTorch's operators. Medians of repeats that take turns, so that a slow moment of the machine
hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from fedmpi import models
from fedmpi.federated import fixed_point
from fedmpi.federated.client_stack import ClientStack, stack_size
from fedmpi.federated.fixed_point import ExactSum
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.local_sgd import local_sgd
from fedmpi.federated.record_training import record_training
from fedmpi.federated.training_step import TrainingStep
from fedmpi.workers.building import NotStackable

MODELS = ("softmax", "2nn", "lenet", "cnn")
ROWS, ROW_SHAPE, CLASSES, BATCH, LR = 600, (1, 28, 28), 10, 10, 0.1


def plain_epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for rows in torch.randperm(len(x)).split(BATCH):
        optimiser.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(found) for name, found in seconds.items()}


def epochs_of(name: str) -> tuple[dict[str, Callable[[], object]], int]:
    """A client's epoch, each on a model of its own, and how many clients a stack takes."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return FlatState(models.build(name, ROW_SHAPE, CLASSES)).model

    x, y = torch.randn(ROWS, *ROW_SHAPE), torch.randint(0, CLASSES, (ROWS,))
    plain = model()
    programs = record_training(model(), F.cross_entropy, ROW_SHAPE, CLASSES)
    assert programs, name
    how = {"epochs": 1, "batch_size": BATCH, "lr": LR, "smallest_batch": 1}
    runs: dict[str, Callable[[], object]] = {"plain": lambda: plain_epoch(plain, x, y)}
    for kind, given in (("autograd", []), ("recorded", programs)):
        step = TrainingStep(model(), F.cross_entropy, given)
        runs[kind] = lambda step=step: local_sgd(step, x, y, seed=1, **how)
    resident = model()
    count = stack_size("auto", sum(p.nbytes for p in resident.parameters()), clients=100)
    try:
        stack = ClientStack(resident, programs, count, (x[:1], y[:1]))
    except NotStackable:
        return runs, 1
    clients, seeds = [(x, y)] * count, list(range(count))
    runs["stacked"] = lambda: stack.train(clients, seeds, **how)
    return runs, count


def sums_of(name: str) -> dict[str, Callable[[], object]]:
    """Adding one update, with and without the compiled pass."""
    state = FlatState(models.build(name, ROW_SHAPE, CLASSES))
    start = [v + 0.01 for v in state.vectors]
    several = ExactSum(state.numel)
    ExactSum._added = fixed_point.WORTH  # as in a process that has added much
    one_pass = ExactSum(state.numel)
    several._one_pass = None
    return {
        "one pass": lambda: one_pass.add(state.vectors, start, 0.01),
        "several": lambda: several.add(state.vectors, start, 0.01),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}; {ROWS} rows, B = {BATCH}; medians of {chosen.repeats}")
    for name in chosen.models:
        runs, count = epochs_of(name)
        found = medians(runs, chosen.repeats)
        if "stacked" in found:
            found["stacked"] /= count
        sums = medians(sums_of(name), 10 * chosen.repeats)
        print(
            f"{name}: plain {found['plain'] * 1e3:.1f} ms; "
            + "; ".join(
                f"{kind} {found[kind] * 1e3:.1f} ms, {found[kind] / found['plain']:.2f} times"
                for kind in found
                if kind != "plain"
            )
            + (f" ({count} at a time)" if count > 1 else "")
            + f"; adding {sums['one pass'] * 1e3:.3f} ms, "
            f"with PyTorch's operators {sums['several'] * 1e3:.3f} ms"
        )


if __name__ == "__main__":
    main()
