"""Elementary functions over the whole of their ranges, as docs/secure.md states them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedmpi.errors import UsageError
from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.against import compare, numbers, worst

Workers = Sequence[RemoteWorker]


def spread(low: float, high: float, count: int = 2000) -> torch.Tensor:
    """From both ends inwards, as many small values as large ones."""
    inside = torch.empty(count, dtype=torch.float64).uniform_(low, high).exp2()
    return torch.cat([torch.tensor([2.0**low, 2.0**high]), inside]).double().clamp(min=2.0**-16)


def evenly(low: float, high: float, *more: float) -> torch.Tensor:
    return torch.cat([torch.linspace(low, high, 3000), torch.tensor(more)]).double()


RANGES: dict[str, tuple[Callable[[Any], Any], torch.Tensor, float, float]] = {
    "exp": (torch.exp, evenly(-30, 13.8, 0.0, -1000, -1e8, -11.7), 3, 1e-5),
    "exp2": (torch.exp2, evenly(-40, 19.9, -16.9, -1e8), 3, 1e-5),
    "log": (torch.log, spread(-16, 29.9), 3, 0),
    "log2": (torch.log2, spread(-16, 29.9), 4, 1e-5),
    "reciprocal": (torch.reciprocal, spread(-16, 29.9), 3, 2e-6),
    "reciprocal of negatives": (torch.reciprocal, -spread(-16, 29.9), 3, 2e-6),
    "sqrt": (torch.sqrt, spread(-16, 29.9), 3, 2e-7),
    "rsqrt": (torch.rsqrt, spread(-16, 29.9), 3, 2e-7),
    "sin": (torch.sin, evenly(-1000, 1000, 1e6, -1e6), 3, 0),
    "cos": (torch.cos, evenly(-1000, 1000, 1e6, -1e6), 3, 0),
    "tan": (torch.tan, evenly(-1.5, 1.5), 3, 1e-5),
    "atan": (torch.atan, evenly(-20, 20, 1e6, -1e6), 4, 0),
    "erf": (torch.erf, evenly(-6, 6, 1e6, -1e6), 3, 0),
    "sigmoid": (torch.sigmoid, evenly(-13, 13, 1e8, -1e8), 3, 0),
    "tanh": (torch.tanh, evenly(-8, 8, 1e8, -1e8), 4, 0),
    "sinh": (torch.sinh, evenly(-10, 10), 6, 1e-5),
    "cosh": (torch.cosh, evenly(-10, 10), 6, 1e-5),
}


@pytest.mark.parametrize("name", RANGES)
def test_errors_are_small_over_the_whole_range(parties: Workers, name: str) -> None:
    function, x, units, relative = RANGES[name]
    assert worst(parties, function, x, relative) < units


SMOOTH = ["exp", "expm1", "exp2", "sin", "cos", "erf", "erfc", "sinh", "cosh", "atan"]
POSITIVE = ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal"]


@pytest.mark.parametrize("name", SMOOTH + POSITIVE)
def test_functions_have_derivatives(parties: Workers, name: str) -> None:
    x = numbers(20)
    compare(parties, getattr(torch, name), x.abs() + 0.3 if name in POSITIVE else x)


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1.5, 2, 3])
def test_powers(parties: Workers, exponent: float) -> None:
    # Derivatives are up to 16, and what is wrong with a root or a reciprocal is multiplied.
    compare(parties, lambda x: x**exponent, numbers(20).abs() + 0.5, gradients=1e-3)


def test_powers_of_numbers_and_of_secrets(parties: Workers) -> None:
    compare(parties, lambda x: 1.7**x, numbers(20))
    compare(
        parties, lambda a, x: a**x, numbers(20).abs() + 0.5, numbers(20, seed=2), gradients=1e-3
    )


def test_quotients(parties: Workers) -> None:
    compare(parties, lambda a, b: a / b, numbers(20), numbers(20, seed=2).abs() + 0.5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_norms(parties: Workers, order: float) -> None:
    compare(parties, lambda x: x.norm(order, 1), numbers(4, 9))


def test_deviations(parties: Workers) -> None:
    compare(parties, lambda x: x.std(0), numbers(4, 9))


def test_a_base_that_is_not_positive_is_refused(parties: Workers) -> None:
    with pytest.raises(UsageError, match="must be greater than 0"):
        (-2) ** share(numbers(3), *parties)


def test_integers_become_real(parties: Workers) -> None:
    x = torch.tensor([1, 2, 10])
    assert torch.allclose(torch.log(share(x, *parties)).reveal(), x.log(), rtol=0, atol=1e-4)


def test_a_function_has_the_shape_of_its_argument(parties: Workers) -> None:
    compare(parties, torch.sqrt, numbers(2, 3, 4).abs() + 0.1)
    assert F.softplus(share(torch.zeros(()), *parties)).shape == ()
