"""Activations: a series in the middle, what is exact at both ends; and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from fedmpi.spdz.protocols.series import SERIES, Series, evaluate
from fedmpi.spdz.table.exponentials import exp_of_negative
from fedmpi.spdz.table.lift import handles, lift, real

aten = torch.ops.aten
Tensor = torch.Tensor
Function = Callable[[Tensor], Tensor]

_GELU_BY_TANH = partial(F.gelu, approximate="tanh")


def _half(function: Function) -> Function:
    """Less x / 2: nearly even, where a rectifier's rounded edge is concerned."""
    return lambda x: function(x) - x / 2


def _slope(function: Function) -> Function:
    """By differences: right to 1e-10, and autograd cannot be had inside an operator."""
    step = 1e-5
    return lambda x: (function(x + step) - function(x - step)) / (2 * step)


def _series(function: Function, low: float, high: float, waves: int) -> Series:
    """Odd waves alone are odd about a quarter of the period, as is what is flat at its ends."""
    return Series(function, low, high, 2 * (high - low), waves, odd=True)


# Beyond its interval each is within a unit or two of 2^-16 of a constant, or of 0 or x.
SERIES |= {
    "sigmoid": _series(torch.sigmoid, -10.8, 10.8, 13),
    "tanh": _series(torch.tanh, -5.8, 5.8, 14),
    "erf": _series(torch.special.erf, -3.1, 3.1, 7),
    "gelu": _series(_half(F.gelu), -4.6, 4.6, 8),
    "gelu slope": _series(_slope(F.gelu), -5.0, 5.0, 9),
    "gelu by tanh": _series(_half(_GELU_BY_TANH), -4.6, 4.6, 8),
    "gelu by tanh slope": _series(_slope(_GELU_BY_TANH), -5.0, 5.0, 10),
    "silu": _series(_half(F.silu), -13.5, 13.5, 17),
    "silu slope": _series(_slope(F.silu), -13.5, 13.5, 19),
    "mish": _series(_half(F.mish), -13.5, 7.0, 17),
    "mish slope": _series(_slope(F.mish), -13.5, 7.0, 19),
    "softplus": _series(_half(F.softplus), -11.0, 11.0, 13),
}


def _middle(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A series, and the bits that say whether x is below or above its interval."""
    secret, dtype = real(x)
    series = SERIES[name]
    below, above = (torch.stack([x - series.low, series.high - x]) < 0).unbind()
    return lift(evaluate(name, secret, secret.bits), dtype), below, above


def _rising(name: str, x: Tensor, lowest: int = 0) -> Tensor:
    """A series that rises from a whole number to 1."""
    y, below, above = _middle(name, x)
    ends = above.to(torch.int64)
    if lowest:
        ends = ends + lowest * below.to(torch.int64)
    return y - below * y - above * y + ends


def _rectifying(name: str, x: Tensor) -> Tensor:
    """A series and x / 2, with 0 below and x above."""
    y, below, above = _middle(name, x)
    y = y + x / 2
    return y - below * y + above * (x - y)


@handles(aten.sigmoid.default)
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) of any x: error below 4 units."""
    return _rising("sigmoid", x)


@handles(aten.sigmoid_backward.default)
def sigmoid_backward(grad: Tensor, y: Tensor) -> Tensor:
    """y (1 - y)."""
    return grad * (y * (1 - y))


@handles(aten.tanh.default)
def tanh(x: Tensor) -> Tensor:
    """Of any x: error below 4 units."""
    return _rising("tanh", x, -1)


@handles(aten.tanh_backward.default)
def tanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    """1 - y^2."""
    return grad * (1 - y * y)


@handles(aten.erf.default)
def erf(x: Tensor) -> Tensor:
    """Of any x: error below 3 units."""
    return _rising("erf", x, -1)


@handles(aten.erfc.default)
def erfc(x: Tensor) -> Tensor:
    """1 - erf x."""
    return 1 - erf(x)


# ---- rounded rectifiers ------------------------------------------------------------------------


def _gelu_name(approximate: str) -> str:
    return "gelu" if approximate == "none" else "gelu by tanh"


@handles(aten.gelu.default)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Of any x: error below 4 units."""
    return _rectifying(_gelu_name(approximate), x)


@handles(aten.gelu_backward.default)
def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """The slope: error below 4 units."""
    return grad * _rising(f"{_gelu_name(approximate)} slope", x)


@handles(aten.silu.default)
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of any x: error below 4 units."""
    return _rectifying("silu", x)


@handles(aten.silu_backward.default)
def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The slope: error below 4 units."""
    return grad * _rising("silu slope", x)


@handles(aten.mish.default)
def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) of any x: error below 4 units."""
    return _rectifying("mish", x)


@handles(aten.mish_backward.default)
def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The slope: error below 4 units."""
    return grad * _rising("mish slope", x)


@handles(aten.softplus.default)
def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + e^(beta x)) / beta of any x: error below 4 units for beta = 1."""
    return _rectifying("softplus", x) if beta == 1 else _rectifying("softplus", beta * x) / beta


@handles(aten.glu.default)
def glu(x: Tensor, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


@handles(aten.glu_backward.default)
def glu_backward(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    """Of both halves."""
    a, b = x.chunk(2, dim)
    s = torch.sigmoid(b)
    by_a = grad * s
    return torch.cat([by_a, by_a * a * (1 - s)], dim)


# ---- their relatives ----------------------------------------------------------------------------


@handles(aten.softplus_backward.default)
def softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    """sigmoid(beta x)."""
    return grad * torch.sigmoid(x if beta == 1 else beta * x)


@handles(aten.log_sigmoid_forward.default)
def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """-softplus(-x); the buffer is for PyTorch's own backward pass."""
    return -softplus(-x), torch.empty(0)


@handles(aten.log_sigmoid_backward.default)
def log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    """sigmoid(-x)."""
    return grad * torch.sigmoid(-x)


@handles(aten.elu.default)
def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    """scale x, or scale alpha (e^(input_scale x) - 1) where x is negative."""
    positive = torch.relu(x)
    power = exp_of_negative(input_scale * (x - positive))
    return scale * positive + (alpha * scale) * (power - 1)


@handles(aten.elu_backward.default)
def elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    """From the argument or from the result."""
    negative = x < 0
    if is_result:
        slope = input_scale * (x + alpha * scale)
    else:
        slope = (input_scale * alpha * scale) * exp_of_negative(input_scale * (negative * x))
    return grad * (scale + negative * (slope - scale))


# ---- of straight pieces ------------------------------------------------------------------------


def _within(x: Tensor, low: float, high: float) -> Tensor:
    """1 where low <= x <= high: a whole number."""
    below, above = (torch.stack([x - low, high - x]) < 0).unbind()
    return 1 - (below.to(torch.int64) + above)


@handles(aten.hardsigmoid.default)
def hardsigmoid(x: Tensor) -> Tensor:
    """x / 6 + 1 / 2, from 0 to 1."""
    return torch.clamp(x + 3, 0, 6) / 6


@handles(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    """1 / 6 between the ends."""
    return _within(x, -3, 3) * (grad / 6)


@handles(aten.hardswish.default)
def hardswish(x: Tensor) -> Tensor:
    """x hardsigmoid(x)."""
    return (x * torch.clamp(x + 3, 0, 6)) / 6


@handles(aten.hardswish_backward.default)
def hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """x / 3 + 1 / 2 between the ends, 1 above."""
    below, above = (torch.stack([x + 3, 3 - x]) < 0).unbind()
    slope = x / 3 + 0.5
    return grad * (slope - below * slope - above * (slope - 1))


@handles(aten.hardtanh_backward.default)
def hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The gradient between the ends."""
    return _within(x, low, high) * grad


@handles(aten.softshrink.default)
def softshrink(x: Tensor, width: float = 0.5) -> Tensor:
    """x, nearer to 0 by the width."""
    up, down = torch.relu(torch.stack([x - width, -x - width])).unbind()
    return up - down


@handles(aten.hardshrink.default)
def hardshrink(x: Tensor, width: float = 0.5) -> Tensor:
    """x, but 0 up to the width."""
    return x - _within(x, -width, width) * x


@handles(aten.softshrink_backward.default, aten.hardshrink_backward.default)
def shrink_backward(grad: Tensor, x: Tensor, width: float) -> Tensor:
    """The gradient beyond the width."""
    return grad - _within(x, -width, width) * grad


@handles(aten.logit.default)
def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x))."""
    if eps is not None:
        x = torch.clamp(x, eps, 1 - eps)
    up, down = torch.log(torch.stack([x, 1 - x])).unbind()
    return up - down
