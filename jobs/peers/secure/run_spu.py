"""SecretFlow SPU 0.9.5, semi2k, two parties: python run_spu.py WORKLOAD ...

The parties are processes joined by brpc; the first one deals (TrustedFirstParty). One JSON line
for each workload: seconds of running the compiled program (median and least, of the slower
party) and the largest error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import spu
import workloads
from spu import api, libspu

PARTIES = 2


def _function(operation: str) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def mlp(x: Any, *parameters: Any) -> Any:
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        for weight, bias in pairs[:-1]:
            x = jnp.maximum(x @ weight.T + bias, 0)
        weight, bias = pairs[-1]
        return x @ weight.T + bias

    def convolution(x: Any, weight: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, weight, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    def pool(x: Any) -> Any:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 2, 2, w // 2, 2).sum((3, 5)) * 0.25

    def lenet(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, *dense: Any) -> Any:
        x = pool(jnp.maximum(convolution(x, w1) + b1[:, None, None], 0))
        x = pool(jnp.maximum(convolution(x, w2) + b2[:, None, None], 0))
        return mlp(x.reshape(x.shape[0], -1), *dense)

    def train(x: Any, y: Any, *parameters: Any) -> Any:
        def loss(parameters: Any) -> Any:
            return ((mlp(x, *parameters) - y) ** 2).sum() / x.shape[0]

        gradients = jax.grad(loss)(parameters)
        rate = workloads.LEARNING_RATE
        new = [p - rate * g for p, g in zip(parameters, gradients, strict=True)]
        return new[-2], *new

    found: dict[str, Callable[..., Any]] = {
        "mul": lambda x, y: x * y,
        "matmul": lambda x, y: x @ y,
        "conv": convolution,
        "gt": lambda x: (x > 0).astype(jnp.float32),
        "relu": lambda x: jnp.maximum(x, 0),
        "exp": jnp.exp,
        "log": jnp.log,
        "reciprocal": lambda x: 1 / x,
        "sigmoid": jax.nn.sigmoid,
        "tanh": jnp.tanh,
        "mlp": mlp,
        "lenet": lenet,
        "train": train,
    }
    return found[operation]


def _config() -> Any:
    config = libspu.RuntimeConfig(
        protocol=spu.parse_protocol_kind("SEMI2K"),
        field=spu.parse_field_type("FM64"),
        fxp_fraction_bits=16,
    )
    config.max_concurrency = 1
    config.beaver_type = libspu.RuntimeConfig.BeaverType.TrustedFirstParty
    return config


def _pack(share: Any) -> tuple[Any, list[Any]]:
    """A share as it travels between processes."""
    return share.meta, list(share.share_chunks)


def _unpack(packed: tuple[Any, list[Any]]) -> Any:
    share = libspu.Share()
    share.meta, share.share_chunks = packed
    return share


def _party(
    rank: int, ports: list[int], program: bytes, shares: list[Any], repeats: int, answers: Any,
    together: Any,
) -> None:  # fmt: skip
    executable = libspu.Executable()
    executable.ParseFromString(program)
    parties = libspu.link.Desc()
    for k, port in enumerate(ports):
        parties.add_party(f"p{k}", f"127.0.0.1:{port}")
    parties.recv_timeout_ms = parties.http_timeout_ms = 540_000
    runtime = api.Runtime(libspu.link.create_brpc(parties, rank), _config())
    for name, share in zip(executable.input_names, shares, strict=True):
        runtime.set_var(name, _unpack(share))
    seconds = []
    for _ in range(repeats + 1):
        together.wait()
        begun = time.perf_counter()
        runtime.run(executable)
        together.wait()
        seconds.append(time.perf_counter() - begun)
    answers.put((rank, seconds, _pack(runtime.get_var(executable.output_names[0]))))


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(PARTIES)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def measure(name: str, repeats: int) -> dict[str, Any]:
    from spu.utils import frontend

    work = workloads.workload(name)
    count = len(work.inputs)
    executable, _ = frontend.compile(
        frontend.Kind.JAX, _function(work.operation), work.inputs, {},
        [f"in{k}" for k in range(count)], [libspu.Visibility.VIS_SECRET] * count,
        lambda outputs: [f"out{k}" for k in range(len(outputs))],
    )  # fmt: skip
    io = api.Io(PARTIES, _config())
    shared = [
        [_pack(s) for s in io.make_shares(np.ascontiguousarray(x), libspu.Visibility.VIS_SECRET)]
        for x in work.inputs
    ]
    processes = multiprocessing.get_context("spawn")
    answers, together, ports = processes.Queue(), processes.Barrier(PARTIES), _free_ports()
    parties = [
        processes.Process(
            target=_party,
            args=(k, ports, executable.SerializeToString(), [s[k] for s in shared], repeats,
                  answers, together),
        )
        for k in range(PARTIES)
    ]  # fmt: skip
    for party in parties:
        party.start()
    found = sorted((answers.get(timeout=540) for _ in parties), key=lambda answer: answer[0])
    for party in parties:
        party.join()
    seconds = [max(both) for both in zip(*(times for _, times, _ in found), strict=True)][1:]
    result = io.reconstruct([_unpack(packed) for *_, packed in found])
    error = float(abs(np.asarray(result, np.float64) - work.expected).max())
    median, least = statistics.median(seconds), min(seconds)
    return {"workload": name, "median": median, "least": least, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    for name in chosen.workloads:
        print(json.dumps(measure(name, chosen.repeats)), flush=True)


if __name__ == "__main__":
    main()
