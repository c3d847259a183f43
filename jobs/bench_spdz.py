"""What secure computation costs: FedMPI beside CrypTen and SPU, two parties and a dealer.

    python -m jobs.bench_spdz --peers FOLDER          (make bench-spdz ARGS=...)

Secret inputs and weights, shared before the clock starts; results stay shared. The clock stops
when the parties and the dealer have done all. Every repeat of FedMPI's has fresh secrets, so that
the openings of their masks are in it; the weights of a model are masked once, but for training,
which changes them. One thread for each of the three ranks; medians and least times of repeats.

FOLDER holds the peers' environments, `crypten` and `spu`, as jobs/peers/secure/setup.sh makes
them. They run the same workloads right after, and the table shows how many times longer they take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

import fedmpi
from fedmpi.tensors.remote_worker import RemoteWorker
from jobs import traffic
from jobs.launched import mpirun
from jobs.peers.secure import workloads

PEERS = Path(__file__).with_name("peers") / "secure"
NAMES = ("crypten", "spu")


class Measured(NamedTuple):
    """Of one workload, as every system's script writes it."""

    workload: str
    median: float
    least: float
    error: float
    dealer: int = 0
    parties: int = 0
    messages: int = 0


# ---- FedMPI: on the owner ----------------------------------------------------------------------


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(784, 128, 128, 10),
    "lenet": lenet,
    "train": lambda: mlp(784, 128, 64, 10),
}
FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "mul": torch.mul,
    "matmul": torch.matmul,
    "conv": F.conv2d,
    "gt": lambda x: x > 0,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def infer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(x)
    return found


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).sum() / x.shape[0]
    loss.backward()
    optimizer.step()


def task(
    work: workloads.Workload, parties: list[RemoteWorker]
) -> tuple[Callable[..., Any], list[torch.Tensor], Callable[[Any], torch.Tensor]]:
    """What is timed, the inputs that are shared anew for it, and where its result is."""
    inputs = [torch.from_numpy(x) for x in work.inputs]
    if work.operation not in MODELS:
        return FUNCTIONS[work.operation], inputs, lambda result: result
    model, fresh = MODELS[work.operation](), 2 if work.operation == "train" else 1
    with torch.no_grad():
        for own, given in zip(model.parameters(), inputs[fresh:], strict=True):
            own.copy_(given)
    shared = fedmpi.share(model, *parties)
    if work.operation == "train":
        optimizer = torch.optim.SGD(shared.parameters(), lr=workloads.LEARNING_RATE)
        step = fedmpi.plan(train)
        weight = list(shared.parameters())[-2]
        return lambda x, y: step(shared, optimizer, x, y), inputs[:2], lambda _: weight
    plan = fedmpi.plan(infer)
    return lambda x: plan(shared, x), inputs[:1], lambda result: result


def wait(parties: list[RemoteWorker]) -> None:
    for party in parties:
        party.wait()


def measure(name: str, repeats: int, parties: list[RemoteWorker]) -> Measured:
    work = workloads.workload(name)
    function, inputs, result_of = task(work, parties)
    crew = parties[0].link.crew
    seconds = []
    for repeat in range(repeats + 1):
        secrets = [fedmpi.share(x, *parties) for x in inputs]
        wait(parties)
        before = traffic.traffic(crew)
        begun = time.perf_counter()
        result = function(*secrets)
        wait(parties)
        seconds.append(time.perf_counter() - begun)
        after = traffic.traffic(crew)
        if repeat == 0:  # the first run compiles, records, and of training is the one checked
            found = result_of(result).detach().reveal().double()
            error = float((found - torch.from_numpy(work.expected)).abs().max())
    sent = [new.nbytes - old.nbytes for old, new in zip(before, after, strict=True)]
    messages = sum(new.messages - old.messages for old, new in zip(before, after, strict=True))
    median, least = statistics.median(seconds[1:]), min(seconds[1:])
    return Measured(name, median, least, error, sent[0], sum(sent[1:]), messages)


def measure_here(names: list[str], repeats: int) -> None:
    torch.set_num_threads(1)
    parties = list(fedmpi.workers())[:2]
    for name in names:
        try:
            line = json.dumps(measure(name, repeats, parties)._asdict())
        except fedmpi.errors.UsageError as error:  # type: ignore[attr-defined]
            print(f"{name}: not measured: {error}", file=sys.stderr, flush=True)
        else:
            print(line, flush=True)


# ---- all of them: processes of their own -------------------------------------------------------


def launch(command: list[str], environment: dict[str, str]) -> dict[str, Measured]:
    """What a system's script finds, by workload; what else it says goes to the terminal."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"workload"'):
            read = json.loads(line)
            found[read["workload"]] = Measured(
                **{key: read[key] for key in Measured._fields if key in read}
            )
    if done.returncode:
        print(f"{command[0]} ended with status {done.returncode}", file=sys.stderr)
    return found


def launch_fedmpi(options: list[str]) -> dict[str, Measured]:
    """Three ranks under the mpirun beside this Python, or the one on the PATH."""
    rank = [sys.executable, "-m", "jobs.bench_spdz", "--part", "fedmpi", *options]
    return launch([mpirun(), "-n", "3", *rank], dict(os.environ, OMP_NUM_THREADS="1"))


def launch_peer(name: str, folder: Path, options: list[str]) -> dict[str, Measured]:
    python = folder / name / "bin" / "python"
    if not python.exists():
        print(f"{name}: not installed in {folder} (jobs/peers/secure/setup.sh)", file=sys.stderr)
        return {}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), str(PEERS / f"run_{name}.py"), *options]
    return launch(command, dict(environment, OMP_NUM_THREADS="1"))


def table(ours: dict[str, Measured], theirs: dict[str, dict[str, Measured]]) -> None:
    print(
        "| | seconds (least) | dealer, parties send | messages | error |"
        + "".join(f" {name} | error |" for name in theirs)
    )
    print("|" + " --- |" * (5 + 2 * len(theirs)))
    for name, own in ours.items():
        cells = [
            name,
            f"{own.median:.4g} ({own.least:.4g})",
            f"{own.dealer / 1e6:.4g}, {own.parties / 1e6:.4g} MB",
            str(own.messages),
            f"{own.error:.2g}",
        ]
        for found in theirs.values():
            peer = found.get(name)
            cells += (
                [f"{peer.median:.4g} s, {peer.median / own.median:.3g} times", f"{peer.error:.2g}"]
                if peer
                else ["", ""]
            )
        print("| " + " | ".join(cells) + " |")
        if name == "relu:100000":
            each = (own.dealer + own.parties) / 100_000
            print(f"| bytes for each element of it, all ranks | {each:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=list(workloads.ALL))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--part", choices=("all", "fedmpi", "owner"), default="all")
    chosen = parser.parse_args()
    options = [*chosen.workloads, "--repeats", str(chosen.repeats)]
    if chosen.part == "owner":
        measure_here(chosen.workloads, chosen.repeats)
    elif chosen.part == "fedmpi":
        # On every rank, which then knows the command that counts the traffic.
        from fedmpi.__main__ import main as start

        sys.argv = ["fedmpi", "exec", __file__, "--part", "owner", *options]
        start()
    else:
        ours = launch_fedmpi(options)
        theirs = {}
        for name in NAMES if chosen.peers else ():
            theirs[name] = launch_peer(name, chosen.peers, options)
        print(f"PyTorch {torch.__version__}; medians and least of {chosen.repeats} repeats")
        table(ours, theirs)


if __name__ == "__main__":
    main()
