"""What every system computes: the same inputs, models and float64 results (NumPy only).

A workload's name is an operation and its size, "matmul:256x256x256". Its inputs are secret for
all systems, weights too, and shared before the clock starts; results stay shared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Layer = tuple[Array, Array]

LEARNING_RATE = 0.1
KERNEL = 5

ALL = (
    "mul:1000000",
    "matmul:256x256x256",
    "matmul:128x784x128",
    "matmul:1024x1024x1024",
    "relu:100000",
    "gt:100000",
    "mlp:1",
    "mlp:128",
    "lenet:1",
    "lenet:32",
    "train:64",
    "mul:100x100",
    "matmul:100x100x100",
    "conv:100x100",
    "gt:100x100",
    "relu:100x100",
    "exp:100x100",
    "log:100x100",
    "reciprocal:100x100",
    "sigmoid:100x100",
    "tanh:100x100",
)

RANGES = {"exp": (-5.0, 5.0), "log": (0.1, 10.0), "reciprocal": (0.1, 10.0)}
"""Of the elements of a function's input; of the other functions' -5 to 5."""


class Workload(NamedTuple):
    """Attributes:
    operation: mul, matmul, conv, gt, a function's name, mlp, lenet or train.
    inputs: float32; of a model, its input, for training the target, then weight and bias of
        each layer.
    expected: float64; of training, the weight of the last layer after one step.
    """

    operation: str
    inputs: list[Array]
    expected: Array


def workload(name: str) -> Workload:
    """The inputs and the result."""
    operation, _, size = name.partition(":")
    sizes = [int(n) for n in size.split("x")]
    random = np.random.default_rng(1)

    def uniform(low: float, high: float, *shape: int) -> Array:
        return random.uniform(low, high, shape).astype(np.float32)

    if operation in ("mlp", "lenet", "train"):
        return _model(operation, sizes[0], uniform)
    if operation == "matmul":
        m, k, n = sizes
        inputs = [uniform(-1, 1, m, k), uniform(-1, 1, k, n)]
    elif operation in ("mul", "gt"):
        inputs = [uniform(-10, 10, *sizes) for _ in range(2 if operation == "mul" else 1)]
    elif operation == "conv":
        inputs = [uniform(-1, 1, 1, 1, *sizes), uniform(-1, 1, 1, 1, KERNEL, KERNEL)]
    else:
        inputs = [uniform(*RANGES.get(operation, (-5.0, 5.0)), *sizes)]
    expected = _EXPECTED[operation](*(x.astype(np.float64) for x in inputs))
    return Workload(operation, inputs, expected)


_EXPECTED: dict[str, Any] = {
    "mul": lambda x, y: x * y,
    "matmul": lambda x, y: x @ y,
    "conv": lambda x, w: _convolution(x, w),
    "gt": lambda x: (x > 0) * 1.0,
    "relu": lambda x: np.maximum(x, 0),
    "exp": np.exp,
    "log": np.log,
    "reciprocal": lambda x: 1 / x,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def _model(operation: str, batch: int, uniform: Any) -> Workload:
    def layer(outputs: int, *inputs: int) -> Layer:
        bound = 1 / np.sqrt(np.prod(inputs))
        return uniform(-bound, bound, outputs, *inputs), uniform(-bound, bound, outputs)

    if operation == "lenet":
        x = uniform(0, 1, batch, 1, 28, 28)
        layers = [layer(20, 1, 5, 5), layer(50, 20, 5, 5), layer(500, 800), layer(10, 500)]
        given, expected = [x], _lenet(x, layers)
    elif operation == "mlp":
        x = uniform(0, 1, batch, 784)
        layers = [layer(128, 784), layer(128, 128), layer(10, 128)]
        given, expected = [x], _mlp(x, layers)[-1]
    else:
        x = uniform(0, 1, batch, 784)
        y = np.eye(10, dtype=np.float32)[np.arange(batch) % 10]
        layers = [layer(128, 784), layer(64, 128), layer(10, 64)]
        *_, hidden, output = _mlp(x, layers)
        gradient = 2 * (output - y).T @ hidden / batch
        given, expected = [x, y], layers[-1][0] - LEARNING_RATE * gradient
    return Workload(operation, given + [t for both in layers for t in both], expected)


def _mlp(x: Array, layers: list[Layer]) -> list[Array]:
    found = [x.astype(np.float64)]
    for k, (weight, bias) in enumerate(layers):
        y = found[-1] @ weight.T.astype(np.float64) + bias
        found.append(y if k == len(layers) - 1 else np.maximum(y, 0))
    return found


def _convolution(x: Array, weight: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    found: Array = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    return found


def _lenet(x: Array, layers: list[Layer]) -> Array:
    x = x.astype(np.float64)
    for weight, bias in layers[:2]:
        x = np.maximum(_convolution(x, weight) + bias[:, None, None], 0)
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return _mlp(x.reshape(len(x), -1), layers[2:])[-1]
