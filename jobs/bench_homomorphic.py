"""What homomorphic aggregation costs beside shares and in the clear, for the 2NN and the CNN.

    python -m jobs.bench_homomorphic          (make bench-he ARGS=...)

Two tables. Whole rounds over MPI, one full-batch step of each client on the 5,000 digits that
need no download: seconds of a round, of these its aggregation (what is neither broadcast, training,
waiting for the slowest nor evaluation), and the bytes that the ranks send. Medians of rounds; the
first one is left out. Then what one rank does with a whole update under CKKS, on one thread:
encryption and serialisation, the addition of one worker's ciphertexts, decryption; and how far the
sum over the workers is from the exact one, beside the stated bound. Medians of repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

import fedmpi
import fedmpi.federated.obeyed  # every rank obeys a job's commands
from fedmpi.config import (
    AggregationConfig,
    ComputeConfig,
    Config,
    DataConfig,
    FederatedConfig,
    SecureKind,
)
from fedmpi.config.aggregation import PolyModulusDegree
from fedmpi.federated.ckks import Key, as_tensor, make_keys, serialised, smudged
from fedmpi.federated.ckks_parameters import Parameters
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.workers.crew import Crew
from jobs import traffic
from jobs.launched import launch

MODELS = {"2nn": 199_210, "cnn": 1_663_370}
KINDS = {"none": "in the clear", "shares": "shares", "ckks": "CKKS"}


# ---- whole rounds: on the owner ----------------------------------------------------------------


def measure_rounds(rounds: int) -> None:
    crew = fedmpi.workers()[0].link.crew
    workers = len(crew.ranks)
    print(f"{workers} workers and the owner, {os.cpu_count()} cores; medians of {rounds} rounds")
    print("| model | aggregation | round | aggregation | a worker sends | the owner sends |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in MODELS:
        for kind, name in KINDS.items():
            if kind not in get_args(SecureKind):
                print(f"| {model} | {name} | not in this version | | | |")
                continue
            config = Config(
                model=model,
                data=DataConfig(source="mnist5k", clients=2 * workers),
                federated=FederatedConfig(
                    mode="scatter",
                    rounds=rounds + 1,
                    fraction=1.0,
                    epochs=1,
                    batch_size="full",
                    eval_every=rounds + 1,
                    secure=AggregationConfig(kind=kind),  # type: ignore[arg-type]
                ),
                compute=ComputeConfig(device="cpu"),
            )
            print(f"| {model} | {name} | {row(config, crew)} |", flush=True)


def row(config: Config, crew: Crew) -> str:
    job = Job(config, crew)
    seen: list[RoundMetrics] = []
    before = traffic.traffic(crew)
    job.run(Observer(seen.append, lambda clients: None))
    after = traffic.traffic(crew)
    sent = [(b.nbytes - a.nbytes) / len(seen) for a, b in zip(before, after, strict=True)]
    later = seen[1:]
    seconds = statistics.median(m.seconds - m.phases["evaluate"] for m in later)
    aggregation = statistics.median(m.phases["aggregate"] for m in later)
    return (
        f"{seconds:.3f} s | {aggregation:.3f} s | {statistics.fmean(sent[1:]) / 1e6:.2f} MB | "
        f"{sent[0] / 1e6:.2f} MB"
    )


# ---- one rank's work, by itself ----------------------------------------------------------------


@dataclass
class Seconds:
    """Seconds of each kind of work over a whole update."""

    encrypt: list[float] = field(default_factory=list)
    add: list[float] = field(default_factory=list)
    decrypt: list[float] = field(default_factory=list)


def timed(seconds: list[float], work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - begun)
    return result


def measure_work(workers: int, repeats: int) -> None:
    torch.set_num_threads(1)
    print(f"one rank's work on one thread, {workers} workers; medians of {repeats} repeats")
    print("| model | degree | encrypt | add | decrypt | bytes of a sum | error | bound |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for model, length in MODELS.items():
        for degree in get_args(PolyModulusDegree):
            print(f"| {model} | {degree} | {work_row(degree, length, workers, repeats)} |")


def work_row(degree: int, length: int, workers: int, repeats: int) -> str:
    parameters = Parameters(degree, AggregationConfig().scale_bits)
    public_key, secret_key = make_keys(parameters)
    public = Key(parameters, as_tensor(public_key), 1)
    secret = Key(parameters, as_tensor(secret_key), 1, secret=True)
    drawn = torch.Generator().manual_seed(0)
    seconds, errors, nbytes, largest = Seconds(), [], 0, 0.0
    for _ in range(repeats):
        vectors = [
            torch.randn(length, generator=drawn, dtype=torch.float64) * 0.01 / workers
            for _ in range(workers)
        ]
        largest = max(largest, *(float(v.abs().max()) for v in vectors))
        sums = None
        for vector in vectors:
            pieces = vector.split(parameters.slots)
            data = timed(
                seconds.encrypt,
                lambda pieces=pieces: [serialised(public.encrypt(piece)) for piece in pieces],
            )
            nbytes = sum(one.numel() for one in data)
            sizes = [len(piece) for piece in pieces]

            def added(data: Any = data, sizes: Any = sizes, sums: Any = sums) -> Any:
                read = [public.read(one, n, 1) for one, n in zip(data, sizes, strict=True)]
                return [a.add_(b) for a, b in zip(sums, read, strict=True)] if sums else read

            sums = timed(seconds.add, added)
        assert sums is not None
        data = [serialised(one) for one in sums]

        def opened(data: Any = data, sizes: Any = sizes) -> torch.Tensor:
            read = [secret.read(one, n, 0) for one, n in zip(data, sizes, strict=True)]
            values = torch.cat([secret.decrypt(one) for one in read])
            return smudged(values, parameters.noise_bound(workers))

        found = timed(seconds.decrypt, opened)
        errors.append(float((found - torch.stack(vectors).sum(0)).abs().max()))
    encrypt, add, decrypt = (statistics.median(times) for times in vars(seconds).values())
    return (
        f"{encrypt:.3f} s | {add:.3f} s | {decrypt:.3f} s | {nbytes / 1e6:.2f} MB | "
        f"{max(errors):.2g} | {parameters.error_bound(workers, largest):.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("all", "ranks", "owner"), default="all")
    chosen = parser.parse_args()
    options = ["--rounds", str(chosen.rounds)]
    if chosen.part == "owner":
        measure_rounds(chosen.rounds)
    elif chosen.part == "ranks":
        # On every rank, which then knows the command that counts the traffic.
        from fedmpi.__main__ import main as start

        sys.argv = ["fedmpi", "exec", __file__, "--part", "owner", *options]
        start()
    else:
        script = ("-m", "jobs.bench_homomorphic", "--part", "ranks", *options)
        launch(chosen.ranks, *script, quiet=False)
        measure_work(chosen.ranks - 1, chosen.repeats)


if __name__ == "__main__":
    main()
