"""The operators that shared tensors have, each with values that may go wrong.

A case is a function of tensors. It is called with plain tensors and with shared ones, and gives
the same, gradients included. Another room of operators adds a section of its own to `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.shared import SharedTensor

Tensor = torch.Tensor

UNIT = 2.0**-16
"""The distance between two neighbouring shared numbers."""


class Public(NamedTuple):
    """A tensor that stays here."""

    tensor: Tensor


class Case(NamedTuple):
    """A function and what it is called with.

    Attributes:
        function: of tensors.
        operands: tensors to be shared, `Public` tensors, and anything else as it is.
        units: how many units a result may be off, for each unit that it would be off anyway.
        grad: whether it has a backward pass.
        core: whether it is run with many parties too: one of each protocol.
    """

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    units: float = 4
    grad: bool = True
    core: bool = False


ROOM = 3
"""Truncations round up or down by chance: a case's units are what it was seen to be off by. What is
wrong is off by far more.
"""


def case(function: Callable[..., Any], *operands: Any, **more: Any) -> Case:
    """A case, from its operands."""
    return Case(function, operands, **more)


def numbers(*shape: int, scale: float = 2.0, seed: int = 1) -> Tensor:
    """Random numbers of both signs that can be shared without an error."""
    source = torch.Generator().manual_seed(seed * 1009 + sum(shape))
    return ((torch.randn(shape, generator=source) * scale) / UNIT).round() * UNIT


def whole(*shape: int, high: int = 5, seed: int = 1) -> Tensor:
    """Random whole numbers from 0 to high - 1."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, shape, generator=source)


EXTREME = torch.tensor(
    [0, 0, UNIT, -UNIT, 1, 1, -1, 2.0**13, -(2.0**13), 8191.5, -8191.5, UNIT - 1, 3, -3, 0.5, -0.5],
    dtype=torch.float64,
)
"""Zeros, ties, the smallest and the largest numbers."""
NOT_ZERO = EXTREME[2:]
"""Where a rectifier has a gradient: at 0 its slope may be that of either side."""
REVERSED = EXTREME.flip(0)
PAIRS = (EXTREME.repeat(16), EXTREME.repeat_interleave(16))
"""Each with each."""
SMALL = EXTREME.clamp(-64, 64)

X = numbers(3, 4)
Y = numbers(3, 4, seed=2)
IMAGES = numbers(2, 4, 6, 6)


def _fill_slice(x: Tensor, y: Tensor) -> Tensor:
    z = x * 1.0
    z[:, 1] = y[:, 0]
    z[0] += 1
    z[1:, 2:] *= 2
    return z


def _write_view(x: Tensor) -> Tensor:
    z = x.clone()
    z.t()[1] = 5.0
    z.view(-1)[3:5] -= x.reshape(-1)[:2]
    return z


LINEAR = {
    "cat": case(lambda x, y: torch.cat([x, y, x], 1), X, Y, core=True),
    "cat with public": case(lambda x, y: torch.cat([y, x]), X, Public(Y)),
    "cat of scales": case(
        lambda x, y: torch.cat([x > 0, y > 1]).to(torch.float32), X, Y, grad=False
    ),
    "stack": case(lambda x, y: torch.stack([x, y], 1), X, Y),
    "split": case(lambda x: x.split([1, 3], 1)[1] * x.split(2, 1)[0][:, :1], X),
    "chunk": case(lambda x: x.chunk(3, 1)[0] + x.chunk(2, 1)[1], X),
    "unbind": case(lambda x: x.unbind(1)[2] * x.unbind(1)[0], X),
    "tensor_split": case(lambda x: x.tensor_split(3, 1)[0], X),
    "hsplit": case(lambda x: x.hsplit(2)[1], X),
    "pad": case(lambda x: F.pad(x, (1, 2, 0, 1)), X),
    "pad by a value": case(lambda x: F.pad(x, (1, -1), value=2.5), X),
    "pad by reflection": case(lambda x: F.pad(x, (2, 1), "reflect"), X),
    "pad by reflection 2d": case(lambda x: F.pad(x, (2, 1, 1, 3), "reflect"), IMAGES),
    "pad by reflection 3d": case(lambda x: F.pad(x, (1, 1) * 3, "reflect"), IMAGES[None]),
    "pad by replication": case(lambda x: F.pad(x, (2, 1), "replicate"), X),
    "pad by replication 2d": case(lambda x: F.pad(x, (2, 1, 1, 3), "replicate"), IMAGES),
    "pad by replication 3d": case(lambda x: F.pad(x, (1, 2) * 3, "replicate"), IMAGES[None]),
    "roll": case(lambda x: x.roll(1, 1) + x.roll((1, 2), (0, 1)) + x.roll(5), X),
    "flip": case(lambda x: x.flip(0) + x.fliplr() + x.flipud(), X),
    "rot90": case(lambda x: x.rot90(1, (0, 1)), X),
    "movedim": case(lambda x: x.movedim(0, -1), IMAGES),
    "permute": case(lambda x: x.permute(2, 0, 3, 1).reshape(6, -1), IMAGES),
    "transpose": case(lambda x: x.transpose(0, 1).contiguous().view(2, 6) + x.mT.reshape(2, 6), X),
    "flatten": case(lambda x: x.flatten(1).unflatten(1, (4, 36)).squeeze().unsqueeze(0), IMAGES),
    "repeat": case(lambda x: x.repeat(2, 3) + x.tile((2, 3)), X),
    "repeat_interleave": case(lambda x: x.repeat_interleave(2, 1), X),
    "expand": case(lambda x: x[:, :1].expand(3, 5) * x[:, 1:2].broadcast_to(3, 5), X),
    "expand_as": case(lambda x, y: x[:1].expand_as(y), X, Y),
    "meshgrid": case(lambda x, y: torch.meshgrid(x, y, indexing="ij"), X[0], Y[:, 0]),
    "unfold": case(lambda x: x.unfold(1, 3, 1) * x.unfold(1, 2, 1)[:, 1:, :1], X),
    "F.unfold": case(lambda x: F.unfold(x, (2, 3), (1, 2), (1, 0), (2, 1)), IMAGES),
    "F.fold": case(lambda x: F.fold(x, (4, 5), (2, 2), 1, 0, 1), numbers(2, 12, 12)),
    "as_strided": case(lambda x: x.as_strided((3, 2), (4, 2), 1) * x[:, :2], X),
    "as_strided of a view": case(lambda x: x.t()[1:].as_strided((2, 3), (1, 4), 1) * x[:2, :3], X),
    "diag": case(lambda x: x[:, :3].diag() + x[0].diag()[:3, 0], X),
    "diagonal": case(lambda x: x.diagonal(1) * x.diagonal(0), X),
    "diag_embed": case(lambda x: x.diag_embed(), X),
    "tril": case(lambda x: x.tril() + x.triu(1) * 2, X),
    "trace": case(lambda x: x[:, :3].trace(), X),
    "block_diag": case(lambda x, y: torch.block_diag(x, y), X, Y),
    "pixel_shuffle": case(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 3), IMAGES),
    "channel_shuffle": case(lambda x: F.channel_shuffle(x, 2), IMAGES),
    "upsample nearest": case(lambda x: F.interpolate(x, scale_factor=2), IMAGES),
    "upsample nearest 1d": case(lambda x: F.interpolate(x, size=7), IMAGES[0]),
    "sum": case(lambda x: x.sum() + x.sum(0).sum() + x.sum((0, 1), keepdim=True), X),
    "sum extremes": case(lambda x: x.sum(), EXTREME, core=True),
    "mean": case(lambda x: x.mean() + x.mean(1, keepdim=True) + x.mean((0, 1)), X, core=True),
    "var": case(lambda x: x.var() + x.var(1, keepdim=True) + x.var(0, correction=0)[None, :1], X),
    "var_mean": case(lambda x: torch.var_mean(x, 1), X),
    "cumsum": case(lambda x: x.cumsum(1) + x.cumsum(0), X),
    "diff": case(lambda x: x.diff(dim=1), X),
    "neg": case(lambda x: -x, EXTREME),
    "clone": case(lambda x: x.clone() + x.contiguous() + x.detach(), X),
    "zeros_like": case(lambda x: x * torch.ones_like(x) + torch.zeros_like(x) + x.new_zeros(4), X),
    "write a slice": case(_fill_slice, X, Y, core=True),
    "write a view": case(_write_view, X),
}

ARITHMETIC = {
    "add": case(lambda x, y: x + y, *PAIRS, core=True),
    "add alpha": case(lambda x, y: torch.add(x, y, alpha=-3) + torch.sub(x, y, alpha=0.5), X, Y),
    "add public": case(lambda x, y: x + y - 2 * y, EXTREME, Public(REVERSED)),
    "add number": case(lambda x: 1.5 + x - 2 + (4 - x), EXTREME),
    "add broadcast": case(lambda x, y: x[:, None] + y[0], X, Y),
    "sub": case(lambda x, y: x - y, *PAIRS),
    "rsub public": case(lambda x, y: y - x, EXTREME, Public(REVERSED)),
    "mul": case(lambda x, y: x * y, EXTREME, SMALL.flip(0), core=True),
    "mul broadcast": case(lambda x, y: x[:, None] * y, X, Y),
    "mul public": case(lambda x, y: x * y, EXTREME, Public(SMALL.flip(0)), core=True),
    "mul number": case(lambda x: x * 0.1 + x * 3 - x * 1e-4 + 12.25 * x, SMALL),
    "mul whole": case(lambda x, n: x * n, X, Public(whole(3, 4))),
    "mul secret whole": case(lambda x, n: x * n, X, whole(3, 4)),
    "whole": case(lambda n: (n + 1) * n - 3 * n, whole(3, 4), grad=False),
    "whole and number": case(lambda n: n * 0.5 + 0.25, whole(3, 4), grad=False),
    "bit and number": case(lambda x: (x > 0) * 0.5 + (x > 1), X, grad=False),
    "bit and bit": case(lambda x: (x > 0) * (x > 1), X, grad=False),
    "div number": case(lambda x: x / 4 + x / 3, SMALL),
    "div public": case(lambda x, y: x / y, X, Public(Y + Y.sign())),
    "square": case(lambda x: x.square() + x**2, SMALL),
    "power": case(lambda x: x**3 + x**1, X),
    "matmul": case(lambda x, y: x @ y.t(), X, Y, core=True),
    "matmul public": case(lambda x, y: x @ y + (y @ x).sum(), X, Public(numbers(4, 3))),
    "matmul vector": case(
        lambda x, y: x @ y[0] + x[:, 0] @ y @ y.t() @ y @ y[1], X, Y * 0.25, units=16
    ),
    "matmul of ranks": case(lambda x, y: x @ y[0, :, :, :2], IMAGES[:, :, :2], IMAGES * 0.5),
    "matmul batch by matrix": case(lambda x, y: x @ y, IMAGES[0], numbers(6, 2)),
    "matmul vector by batch": case(lambda x, y: y @ x, IMAGES, numbers(6)),
    "mm": case(torch.mm, X, numbers(4, 2)),
    "mv": case(torch.mv, X, numbers(4)),
    "bmm": case(torch.bmm, numbers(2, 3, 4), numbers(2, 4, 2)),
    "dot": case(lambda x, y: torch.dot(x, y) + torch.vdot(x, y) + torch.inner(x, y), X[0], Y[1]),
    "addmm": case(
        lambda b, x, y: torch.addmm(b, x, y, beta=0.5, alpha=2), numbers(2), X, numbers(4, 2)
    ),
    "addmv": case(torch.addmv, numbers(3), X, numbers(4)),
    "addbmm": case(torch.addbmm, numbers(3, 2), numbers(2, 3, 4), numbers(2, 4, 2)),
    "baddbmm": case(torch.baddbmm, numbers(2, 3, 2), numbers(2, 3, 4), numbers(2, 4, 2)),
    "addr": case(lambda b, x, y: torch.addr(b, x, y, alpha=2), X, numbers(3), numbers(4)),
    "outer": case(torch.outer, X[0], Y[:, 0]),
    "kron": case(torch.kron, X, Y),
    "tensordot": case(
        lambda x, y: torch.tensordot(x, y, ([1, 2], [1, 2])), IMAGES[:, :, :2], IMAGES[:, :, 3:5]
    ),
    "einsum": case(lambda x, y: torch.einsum("bihw,ij->bjhw", x, y), IMAGES, numbers(4, 3)),
    "einsum trace": case(lambda x, y: torch.einsum("ij,ij->", x, y), X, Y),
    "linear": case(F.linear, X, numbers(2, 4), numbers(2)),
    "linear without bias": case(F.linear, numbers(2, 3, 4), numbers(2, 4)),
    "linear on batches": case(F.linear, numbers(2, 3, 4), numbers(2, 4), numbers(2)),
    "linear of public": case(F.linear, Public(numbers(2, 3, 4)), numbers(2, 4), numbers(2)),
    "bilinear": case(F.bilinear, X, numbers(3, 2), numbers(2, 4, 2), numbers(2)),
    "cross": case(lambda x, y: torch.linalg.cross(x[:, :3], y[:, :3]), X, Y),
    "addcmul": case(lambda x, y: torch.addcmul(x, x, y, value=0.5), X, Y),
    "lerp": case(lambda x, y: torch.lerp(x, y, 0.25), X, Y),
    "prod": case(lambda x: x.prod() + x.prod(1).sum(), X / 2, units=64),
    "prod of a row": case(lambda x: x.prod(0, keepdim=True), X),
    "prod with zeros": case(lambda x: x.prod(1), torch.tensor([[0.0, 2, 3], [0, 0, 1.5]])),
    "cumprod": case(lambda x: x.cumprod(1), X, units=64, grad=False),
    "in place": case(lambda x, y: (x * 1).add_(y).mul_(y).sub_(0.5).div_(2).neg_(), X, Y),
    "in place public": case(lambda x, y: (x * 1).add_(y).mul_(y).sub_(y), X, Public(Y)),
    "norm": case(lambda x: (x - x.mean(0)).square().sum(1), X),
}


def _convolution(**more: Any) -> Callable[..., Tensor]:
    return lambda x, w, b=None: F.conv2d(x, w, b, **more)


CONVOLUTIONS = {
    "conv1d": case(
        lambda x, w, b: F.conv1d(x, w, b, 2, 1), numbers(2, 3, 7), numbers(4, 3, 3), numbers(4)
    ),
    "conv2d": case(_convolution(), IMAGES, numbers(3, 4, 3, 2), numbers(3), core=True),
    "conv2d strided": case(
        _convolution(stride=(2, 1), padding=(1, 2)), IMAGES, numbers(3, 4, 3, 2)
    ),
    "conv2d dilated": case(_convolution(dilation=2), IMAGES, numbers(3, 4, 2, 2), numbers(3)),
    "conv2d grouped": case(_convolution(groups=2), IMAGES, numbers(6, 2, 2, 2), numbers(6)),
    "conv2d depthwise": case(_convolution(groups=4), IMAGES, numbers(4, 1, 2, 2), numbers(4)),
    "conv2d same": case(_convolution(padding="same"), IMAGES, numbers(2, 4, 3, 2)),
    "conv2d valid": case(_convolution(padding="valid"), IMAGES, numbers(2, 4, 3, 2)),
    "conv2d of one": case(_convolution(padding=1), IMAGES[0], numbers(2, 4, 3, 2), numbers(2)),
    "conv2d of public": case(_convolution(), Public(IMAGES), numbers(2, 4, 3, 2), numbers(2)),
    "conv2d by public": case(
        _convolution(), IMAGES, Public(numbers(2, 4, 3, 2)), Public(numbers(2))
    ),
    "conv3d": case(F.conv3d, numbers(1, 2, 3, 4, 4), numbers(2, 2, 2, 2, 2), numbers(2)),
    "conv_transpose1d": case(
        lambda x, w: F.conv_transpose1d(x, w, stride=2), numbers(2, 3, 4), numbers(3, 2, 3)
    ),
    "conv_transpose2d": case(
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1),
        IMAGES[:, :, :3, :3],
        numbers(4, 3, 3, 3),
        numbers(3),
    ),
    "conv_transpose2d grouped": case(
        lambda x, w: F.conv_transpose2d(x, w, groups=2), IMAGES[:, :, :3, :3], numbers(4, 3, 2, 2)
    ),
}

CHOICES = {
    "gt": case(lambda x, y: x > y, *PAIRS, grad=False, core=True),
    "ge": case(lambda x, y: x >= y, *PAIRS, grad=False),
    "lt": case(lambda x, y: x < y, *PAIRS, grad=False),
    "le": case(lambda x, y: x <= y, *PAIRS, grad=False),
    "eq": case(lambda x, y: x == y, *PAIRS, grad=False, core=True),
    "ne": case(lambda x, y: x != y, *PAIRS, grad=False),
    "gt number": case(
        lambda x: [x > 0, x >= 1, x < 1, x <= 0, x == 1, x != 0], EXTREME, grad=False
    ),
    "gt public": case(
        lambda x, y: [x > y, x >= y, x < y, x <= y, x == y, x != y],
        EXTREME,
        Public(EXTREME.roll(2)),
        grad=False,
    ),
    "public gt": case(
        lambda x, y: [y > x, y >= x, y == x], EXTREME, Public(EXTREME.roll(2)), grad=False
    ),
    "whole gt": case(lambda x, y: [x > y, x == y, x <= 2], whole(9), whole(9, seed=3), grad=False),
    "bits": case(
        lambda x, y: [~(x > y), (x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0)],
        EXTREME,
        REVERSED,
        grad=False,
    ),
    "logical": case(
        lambda x, y: [x.logical_not(), x.logical_and(y), x.logical_or(y), x.logical_xor(y)],
        EXTREME,
        REVERSED,
        grad=False,
    ),
    "bits with public": case(
        lambda x, y: [(x > 0) & y, y | (x > 0), (x > 0) ^ y],
        EXTREME,
        Public(REVERSED > 0),
        grad=False,
    ),
    "where": case(lambda x, y: torch.where(x > y, x, y), *PAIRS, core=True),
    "where by a public": case(lambda c, x, y: torch.where(c, x, y), Public(X > 0), X, Y),
    "where of public": case(lambda x, y: torch.where(x > 0, y, 0.5), X, Public(Y), grad=False),
    "where of numbers": case(lambda x: torch.where(x > 0, 1.0, -1.0), X, grad=False),
    "masked_fill": case(lambda x: x.masked_fill(x > 1, 0.5) + x.masked_fill(x < 0, 2), X),
    "masked_fill public": case(lambda x, m: x.masked_fill(m, -7.5), X, Public(Y > 0)),
    "abs": case(torch.abs, EXTREME),
    "sign": case(lambda x: torch.sign(x) * x, EXTREME),
    "relu": case(torch.relu, EXTREME, grad=False, core=True),
    "relu backward": case(torch.relu, NOT_ZERO, core=True),
    "relu6": case(F.relu6, NOT_ZERO),
    "leaky_relu": case(lambda x: F.leaky_relu(x, 0.25), NOT_ZERO),
    "prelu": case(lambda x, w: F.prelu(x, w), SMALL, torch.tensor([0.25], dtype=torch.float64)),
    "hardtanh": case(lambda x: F.hardtanh(x, -2, 2), EXTREME),
    "clamp": case(lambda x: x.clamp(-1, 2) + x.clamp(min=0.5) + x.clamp(max=0.5), EXTREME),
    "clamp by tensors": case(lambda x, y: x.clamp(min=y), *PAIRS),
    "threshold": case(lambda x: F.threshold(x, 0.75, 20), EXTREME),
    "maximum": case(torch.maximum, *PAIRS, core=True),
    "minimum": case(torch.minimum, *PAIRS),
    "max of a public": case(lambda x, y: torch.maximum(x, y) + torch.minimum(y, x), X, Public(Y)),
}

WAVE = numbers(2, 3, 7)
TIED = torch.tensor([[1.0, 3, 3, -2, 3], [0, 0, 0, 0, 0], [-8191.5, -UNIT, -1, -UNIT, -3]])
"""Rows with equal greatest elements."""


def _max_pool(*arguments: Any, **more: Any) -> Callable[..., Any]:
    return lambda x: F.max_pool2d(x, *arguments, **more)


def _avg_pool(*arguments: Any, **more: Any) -> Callable[..., Any]:
    return lambda x: F.avg_pool2d(x, *arguments, **more)


POOLING = {
    "avg_pool1d": case(lambda x: F.avg_pool1d(x, 3, 2, 1), WAVE),
    "avg_pool2d": case(_avg_pool(2), IMAGES, core=True),
    "avg_pool2d overlapping": case(_avg_pool((3, 2), (1, 2), (1, 0)), IMAGES),
    "avg_pool2d ceil": case(_avg_pool(4, 3, 1, ceil_mode=True), IMAGES),
    "avg_pool2d without padding": case(_avg_pool(3, 2, 1, True, count_include_pad=False), IMAGES),
    "avg_pool2d divisor": case(_avg_pool(2, divisor_override=3), IMAGES[0]),
    "avg_pool3d": case(lambda x: F.avg_pool3d(x, 2, 1, 1), numbers(1, 1, 3, 4, 4)),
    "lp_pool": case(lambda x: F.avg_pool2d(x.square(), 2), IMAGES),
    "adaptive_avg_pool1d": case(lambda x: F.adaptive_avg_pool1d(x, 3), WAVE),
    "adaptive_avg_pool2d": case(lambda x: F.adaptive_avg_pool2d(x, (4, 3)), IMAGES, core=True),
    "adaptive_avg_pool2d to one": case(lambda x: F.adaptive_avg_pool2d(x, 1), IMAGES),
    "adaptive_avg_pool3d": case(lambda x: F.adaptive_avg_pool3d(x, 2), numbers(1, 1, 3, 4, 4)),
    "max_pool1d": case(lambda x: F.max_pool1d(x, 3, 2, 1), WAVE),
    "max_pool2d": case(_max_pool(2), IMAGES, core=True),
    "max_pool2d overlapping": case(_max_pool((3, 2), (1, 2), (1, 0)), IMAGES),
    "max_pool2d dilated": case(_max_pool(2, 1, 1, 2), IMAGES),
    "max_pool2d ceil": case(_max_pool(3, 2, 1, ceil_mode=True), IMAGES[0]),
    "max_pool2d ties": case(_max_pool(2, 1), torch.tensor([[[2.0, 2, 0], [2, 0, 0], [-1, -1, 0]]])),
    "max_pool2d extremes": case(_max_pool(3, 1, 1), EXTREME.view(1, 4, 4)),
    "max_pool2d indices": case(
        lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), IMAGES, core=True
    ),
    "max_pool3d": case(lambda x: F.max_pool3d(x, 2, 1, 1), numbers(1, 1, 2, 3, 3)),
    "adaptive_max_pool1d": case(lambda x: F.adaptive_max_pool1d(x, 3), WAVE),
    "adaptive_max_pool2d": case(lambda x: F.adaptive_max_pool2d(x, (4, 3)), IMAGES),
    "adaptive_max_pool2d to one": case(lambda x: F.adaptive_max_pool2d(x, 1), IMAGES),
}

EXTREMES = {
    "max": case(lambda x: x.max(), EXTREME, grad=False),
    "min": case(lambda x: x.min(), EXTREME, grad=False),
    "max in a dimension": case(lambda x: x.max(1), X, core=True),
    "max in a dimension, ties": case(lambda x: x.max(1), TIED),
    "min in a dimension": case(lambda x: x.min(0, keepdim=True), X),
    "min in a dimension, ties": case(lambda x: x.min(1), -TIED),
    "max of extremes": case(lambda x: x.max(0), EXTREME),
    "max of one": case(lambda x: x[:, :1].max(1), X),
    "argmax": case(
        lambda x: [x.argmax(), x.argmax(1), x.argmax(0, True)], TIED, grad=False, core=True
    ),
    "argmin": case(lambda x: [x.argmin(), x.argmin(1), x.argmin(0, True)], TIED, grad=False),
    "amax": case(lambda x: [x.amax(1), x.amax((0, 2)), x.amax((1, 3), True)], IMAGES, grad=False),
    "amin": case(lambda x: [x.amin(1), x.amin(())], X, grad=False),
    "aminmax": case(lambda x: [*x.aminmax(), *x.aminmax(dim=1)], X, grad=False),
    "max of whole": case(
        lambda n: [n.max(1).values, n.argmin(0), n.amax()], whole(3, 4), grad=False
    ),
    "sort": case(lambda x: x.sort(1), numbers(2, 5)),
    "sort descending": case(lambda x: x.sort(0, descending=True), numbers(5, 2)),
    "sort ties": case(lambda x: x.sort(1).values, TIED, grad=False),
    "sort extremes": case(lambda x: x.sort().values, EXTREME, grad=False),
    "argsort": case(lambda x: x.argsort(1), numbers(2, 7), grad=False),
    "topk": case(lambda x: x.topk(2, 1), numbers(2, 5), core=True),
    "topk smallest": case(lambda x: x.topk(3, 0, largest=False), numbers(5, 2)),
    "median": case(lambda x: x.median(1), numbers(2, 5)),
    "median of all": case(lambda x: x.median(), X, grad=False),
    "kthvalue": case(lambda x: x.kthvalue(2, 1), numbers(2, 5)),
}

ROWS = torch.tensor([2, 0, 2, -1])
TABLE = numbers(5, 3)
WHERE = whole(2, 3)


def _write(x: Tensor, y: Tensor) -> Tensor:
    z = x * 1
    z[torch.tensor([2, 0])] = y[:2]
    z[torch.tensor([True, False, True])] += 1
    return z


INDEXING = {
    "index": case(lambda x, i: x[i] + x[:, [1, 1, 0, 2]][i], X, Public(ROWS)),
    "index twice": case(lambda x: x[[0, 2], [1, 1]] + x[1, [0, 0]], X),
    "index by a mask": case(lambda x, m: x[m], X, Public(Y > 0)),
    "index with None": case(
        lambda x: x[None, ..., -1, 1:3] + x[:, None, 0, ::2][:, 0, :1, :2], IMAGES
    ),
    "index_select": case(lambda x: x.index_select(1, torch.tensor([3, 0, 3])), X),
    "gather": case(lambda x: x.gather(1, torch.tensor([[3, 3], [0, 1], [2, 2]])), X),
    "take": case(lambda x: x.take(torch.tensor([[3, 3], [0, 11]])), X),
    "take_along_dim": case(lambda x: x.take_along_dim(torch.tensor([[3, 3, 1]]), 1), X),
    "masked_select": case(lambda x, m: x.masked_select(m), X, Public(Y > 0)),
    "index_put": case(_write, X, Y),
    "index_put adding": case(
        lambda x, y: x.index_put((torch.tensor([1, 1, 0]),), y, accumulate=True), X, Y
    ),
    "index_add": case(lambda x, y: x.index_add(0, torch.tensor([1, 1, 0]), y, alpha=2), X, Y),
    "index_copy": case(lambda x, y: x.index_copy(0, torch.tensor([1, 2, 0]), y), X, Y),
    "index_fill": case(lambda x: x.index_fill(1, torch.tensor([1, 2]), 2.5), X),
    "scatter": case(lambda x, y: x.scatter(1, torch.tensor([[3, 0]] * 3), y), X, Y[:, :2]),
    "scatter a number": case(lambda x: x.scatter(1, torch.tensor([[3, 0]] * 3), 1.5), X),
    "scatter into public": case(
        lambda x, y: torch.scatter(x, 1, torch.tensor([[3, 0, 1, 1]] * 3), y).sum(),
        Public(X),
        Y,
        grad=False,
    ),
    "scatter_add": case(lambda x, y: x.scatter_add(1, torch.tensor([[3, 0, 3, 3]] * 3), y), X, Y),
    "embedding": case(lambda t, i: F.embedding(i, t), TABLE, Public(WHERE)),
    "embedding padding": case(lambda t, i: F.embedding(i, t, padding_idx=2), TABLE, Public(WHERE)),
    "secret index_select": case(lambda x, i: x.index_select(0, i), TABLE, whole(4), core=True),
    "secret index of columns": case(lambda x, i: x[:, i], X, whole(2, 2, high=4)),
    "secret index of public": case(lambda x, i: x[i], Public(TABLE), whole(4), grad=False),
    "secret gather": case(lambda x, i: x.gather(1, i), X, whole(3, 2, high=4)),
    "secret take": case(lambda x, i: x.take(i), X, whole(2, 2, high=12)),
    "secret embedding": case(lambda t, i: F.embedding(i, t), TABLE, WHERE, core=True),
    "secret embedding padding": case(lambda t, i: F.embedding(i, t, padding_idx=2), TABLE, WHERE),
    "secret scatter_add": case(
        lambda x, i, y: x.scatter_add(1, i, y), X, whole(3, 2, high=4), Y[:, :2]
    ),
    "secret index_add": case(lambda x, i, y: x.index_add(0, i, y), TABLE, whole(3), Y[:, :3]),
    "index by argmax": case(lambda x, y: y.gather(1, x.argmax(1, keepdim=True)), X, Y[:, :4]),
    "one_hot": case(lambda i: F.one_hot(i, 5), WHERE, grad=False),
    "one_hot of public": case(lambda x, i: x * F.one_hot(i, 4), X, Public(whole(3, high=4))),
    "one_hot of argmax": case(lambda x: F.one_hot(x.argmax(1), 4) * x, X),
}

SECTIONS: dict[str, dict[str, Case]] = {
    "linear": LINEAR,
    "arithmetic": ARITHMETIC,
    "convolutions": CONVOLUTIONS,
    "choices": CHOICES,
    "pooling": POOLING,
    "extremes": EXTREMES,
    "indexing": INDEXING,
}


def _results(case: Case, place: Callable[[Tensor], Tensor]) -> list[Any]:
    """Results, and the gradients of their weighted sum."""
    operands = [
        o.tensor if isinstance(o, Public) else place(o) if isinstance(o, Tensor) else o
        for o in case.operands
    ]
    inputs = [
        o for o, given in zip(operands, case.operands, strict=True)
        if isinstance(given, Tensor) and o.dtype.is_floating_point
    ]  # fmt: skip
    for tensor in inputs if case.grad else ():
        tensor.requires_grad_()
    results = tree_leaves(case.function(*operands))
    found = list(results)
    if case.grad:
        total = sum((r * _weights(r)).sum() for r in results if r.requires_grad)
        assert isinstance(total, Tensor)
        found += torch.autograd.grad(total, inputs, allow_unused=True)
    return found


def _weights(like: Tensor) -> Tensor:
    """For each element another."""
    return 1 + (torch.arange(like.numel(), dtype=like.dtype) % 7).view(like.shape) / 8


def check(name: str, case: Case, workers: Sequence[RemoteWorker]) -> None:
    """Calls the function with plain and with shared tensors."""
    expected = _results(case, lambda t: t.clone())
    found = _results(case, lambda t: share(t, *workers))
    assert len(found) == len(expected)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if b is None:
            assert a is None, f"{name}: result {k} should be None"
            continue
        if isinstance(a, SharedTensor):
            a = a.reveal()
        assert a.dtype == b.dtype, f"{name}: result {k} is {a.dtype}, should be {b.dtype}"
        assert a.shape == b.shape, f"{name}: result {k} is {a.shape}, should be {b.shape}"
        off = (a.double() - b.double()).abs()
        allowed = ROOM * case.units * UNIT * (1 + b.double().abs() / 8)
        assert bool((off <= allowed).all()), (
            f"{name}: result {k} is off by {float((off / allowed).max()):.3g} times the limit:"
            f"\n{a}\n{b}"
        )
