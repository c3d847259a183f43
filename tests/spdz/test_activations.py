"""Activations: any x, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.against import compare, numbers, worst

Workers = Sequence[RemoteWorker]


NAMES = [
    "sigmoid",
    "tanh",
    "silu",
    "mish",
    "gelu",
    "softplus",
    "elu",
    "celu",
    "selu",
    "hardsigmoid",
    "hardswish",
    "logsigmoid",
    "softshrink",
    "hardshrink",
    "relu6",
    "glu",
    "softsign",
    "tanhshrink",
]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_derivatives(parties: Workers, name: str) -> None:
    compare(parties, getattr(F, name), numbers(6, 8) * 3)


def _gelu_by_tanh(x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize(
    "function", [F.gelu, _gelu_by_tanh, F.silu, F.mish, F.softplus, F.logsigmoid, F.elu]
)
def test_errors_are_small_for_any_argument(parties: Workers, function: Callable[..., Any]) -> None:
    x = torch.cat([torch.linspace(-20, 20, 4000), torch.tensor([0, 1e6, -1e6, 1e8, -1e8])])
    assert worst(parties, function, x.double()) < 4


def test_gelu_by_tanh_and_prelu_have_derivatives(parties: Workers) -> None:
    compare(parties, _gelu_by_tanh, numbers(6, 8) * 3)
    compare(parties, F.prelu, numbers(6, 8), torch.tensor([0.25]))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax(parties: Workers, name: str) -> None:
    # A gradient of log_softmax has the error of an exponential, times the sum of ten gradients.
    compare(parties, lambda x: getattr(torch, name)(x, 1), numbers(5, 10) * 4, gradients=1e-3)


def test_softmax_of_extreme_values(parties: Workers) -> None:
    x = torch.tensor([[1000.0, -1000, 999, 0], [-5000, -5000, -5000, -5000]])
    compare(parties, lambda x: x.softmax(1), x)
