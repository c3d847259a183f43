"""PyTorch's fast LSTM on a CPU, with the checks that it leaves to its caller.

oneDNN trusts the shapes that it is given and reads beyond memory where they do not fit.
`nn.LSTM` has checked them; a message may lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from fedmpi.comm.frame import ProtocolError

MODE = 2
"""LSTM, the only mode in which PyTorch calls these operators."""


def checked(operator: OpOverload) -> Callable[..., Any]:
    """`mkldnn_rnn_layer` or its backward pass, for arguments that fit together."""
    names = [argument.name for argument in operator._schema.arguments]
    is_backward = "workspace" in names

    def run(*positional: Any, **keywords: Any) -> Any:
        given = dict(zip(names, positional, strict=False)) | keywords
        _check(given, names)
        if is_backward:
            _check_backward(given)
        given = {n: v.contiguous() if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        # With gradients on, or the forward pass keeps nothing for the backward one.
        with torch.enable_grad():
            return operator._op(**given)

    return run


def _check(given: dict[str, Any], names: Sequence[str]) -> None:
    x, hidden = given["input"], given["hidden_size"]
    if given["mode"] != MODE or given["batch_sizes"] or x.dim() != 3 or not x.numel():
        raise ProtocolError("an LSTM's layer takes a tensor of three dimensions, and is no other")
    _, batch, features = x.shape
    _compare(given, names[:3], [x.shape, (4 * hidden, features), (4 * hidden, hidden)])
    if given["has_biases"]:
        _compare(given, names[3:5], [(4 * hidden,)] * 2)
    _compare(given, names[5:7], [(batch, hidden)] * 2)


def _check_backward(given: dict[str, Any]) -> None:
    (steps, batch, features), hidden = given["input"].shape, given["hidden_size"]
    over_time, last = (steps, batch, hidden), (batch, hidden)
    names = ("output", "hy_", "cy_", "grad_output", "grad_hy", "grad_cy")
    present = [name for name in names if given[name] is not None]
    _compare(given, present, [over_time if "out" in name else last for name in present])
    kept = _bytes_kept(steps, batch, features, hidden, bool(given["reverse"]))
    workspace = given["workspace"]
    if workspace.dtype != torch.uint8 or workspace.shape != (kept,):
        raise ProtocolError(f"an LSTM keeps {kept} bytes, not {list(workspace.shape)}")


def _compare(given: dict[str, Any], names: Sequence[str], shapes: Sequence[Any]) -> None:
    for name, shape in zip(names, shapes, strict=True):
        tensor = given[name]
        if tensor.dtype != torch.float32 or tensor.shape != tuple(shape):
            raise ProtocolError(
                f"an LSTM's {name} is {tensor.dtype} {list(tensor.shape)}: expected float32 "
                f"{list(shape)}"
            )


@cache
def _bytes_kept(steps: int, batch: int, features: int, hidden: int, reverse: bool) -> int:
    """What the forward pass keeps for the backward one; only oneDNN knows how much that is."""
    x, state = torch.zeros(steps, batch, features), torch.zeros(batch, hidden)
    weights = torch.zeros(4 * hidden, features), torch.zeros(4 * hidden, hidden)
    bias = torch.zeros(4 * hidden)
    settings: tuple[Any, ...] = (reverse, [], MODE, hidden, 1, True, False, False, True)
    with torch.enable_grad():
        result = torch.ops.aten.mkldnn_rnn_layer(x, *weights, bias, bias, state, state, *settings)
    return int(result[3].numel())
