"""CrypTen 0.4.1, two parties and its trusted third party: python run_crypten.py WORKLOAD ...

One JSON line for each workload: seconds (median and least, of the slower party), the largest
error, and the bytes that the first party counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import crypten_import  # noqa: F401 - comes before crypten

# isort: split
import crypten
import crypten.communicator as comm
import crypten.mpc as mpc
import crypten.nn as cnn
import torch
import workloads


def _layers(operation: str) -> Any:
    if operation == "lenet":
        return cnn.Sequential(
            cnn.Conv2d(1, 20, 5), cnn.ReLU(), cnn.AvgPool2d(2),
            cnn.Conv2d(20, 50, 5), cnn.ReLU(), cnn.AvgPool2d(2),
            cnn.Flatten(), cnn.Linear(800, 500), cnn.ReLU(), cnn.Linear(500, 10),
        )  # fmt: skip
    middle = 64 if operation == "train" else 128
    return cnn.Sequential(
        cnn.Linear(784, 128), cnn.ReLU(),
        cnn.Linear(128, middle), cnn.ReLU(), cnn.Linear(middle, 10),
    )  # fmt: skip


def _model(operation: str, parameters: list[torch.Tensor]) -> Any:
    model = _layers(operation)
    layers = [m for m in model.modules() if hasattr(m, "weight")]
    for layer, weight, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
        layer.set_parameter("weight", weight)
        layer.set_parameter("bias", bias)
    return model.encrypt(src=0)


def _task(work: workloads.Workload) -> Callable[[], Any]:
    """What is timed, on secrets."""
    inputs = [torch.from_numpy(x) for x in work.inputs]
    if work.operation in ("mlp", "lenet"):
        model = _model(work.operation, inputs[1:])
        model.eval()
        x = crypten.cryptensor(inputs[0], src=1)

        def infer() -> Any:
            with crypten.no_grad():
                return model(x)

        return infer
    if work.operation == "train":
        model = _model("train", inputs[2:])
        x, y = (crypten.cryptensor(t, src=1) for t in inputs[:2])

        def step() -> Any:
            difference = model(x) - y
            loss = difference.square().sum() / len(inputs[0])
            model.zero_grad()
            loss.backward()
            model.update_parameters(workloads.LEARNING_RATE)
            return list(model.parameters())[-2]

        return step
    x, *more = (crypten.cryptensor(t, src=k) for k, t in enumerate(inputs))
    operations: dict[str, Callable[[], Any]] = {
        "mul": lambda: x * more[0],
        "matmul": lambda: x.matmul(more[0]),
        "conv": lambda: x.conv2d(more[0]),
        "gt": lambda: x > 0,
    }
    return operations.get(work.operation) or getattr(x, work.operation)


def _measure(names: list[str], repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    here, found = comm.get(), []
    for name in names:
        work = workloads.workload(name)
        task = _task(work)
        seconds: list[float] = []
        for repeat in range(repeats + 2):
            if repeat > repeats:  # bytes are counted in a run that is not timed
                crypten.cfg.communicator.verbose = True
                here.reset_communication_stats()
            here.barrier()
            begun = time.perf_counter()
            result = task()
            here.barrier()
            seconds.append(time.perf_counter() - begun)
            if repeat == 0:  # of training, one step
                # Not get_plain_text, whose decoding in float32 is off by 1 where a remainder
                # rounds up.
                opened = result.reveal().double() / result.encoder.scale
                error = abs(opened.numpy() - work.expected).max()
        sent = here.get_communication_stats()["bytes"]
        crypten.cfg.communicator.verbose = False
        seconds = seconds[1:-1]
        median, least = statistics.median(seconds), min(seconds)
        line = {"workload": name, "median": median, "least": least, "error": float(error)}
        found.append({**line, "bytes": sent})
        if here.get_rank() == 0:
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    crypten.cfg.mpc.provider = "TTP"
    logging.disable(logging.CRITICAL)  # the launcher's lines for every process
    mpc.run_multiprocess(world_size=2)(_measure)(chosen.workloads, chosen.repeats)


if __name__ == "__main__":
    main()
