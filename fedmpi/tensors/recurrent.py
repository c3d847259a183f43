"""Recurrent modules on a worker make what they make on their way there: see `MakingThere`.

PyTorch's make the state that they start with, and the biases that they do without, of zeros.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fedmpi.tensors.making import MakingThere
from fedmpi.tensors.pointer import PointerTensor

_entered: list[MakingThere | None] = []
"""Of the forward passes under way, the innermost last."""


def make_there(module: nn.Module) -> None:
    """Has each RNN, LSTM, GRU and cell in a module make its tensors where its input is."""
    for part in module.modules():
        is_new = _enter not in part._forward_pre_hooks.values()
        if isinstance(part, nn.RNNBase | nn.RNNCellBase) and is_new:
            part.register_forward_pre_hook(_enter, with_kwargs=True)
            part.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = [*args, *kwargs.values()][0]
    making = MakingThere(x.remote.link) if isinstance(x, PointerTensor) else None
    _entered.append(making)
    if making is not None:
        making.__enter__()


def _leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    making = _entered.pop()
    if making is not None:
        making.__exit__(None, None, None)
