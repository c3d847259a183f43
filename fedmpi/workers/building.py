"""How the function of a `Stacked` program is written: values, kept memory, calls of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vectors."""


class NotStackable(Exception):
    """The program has an operator that is not in the table."""


@dataclass(frozen=True)
class Value:
    """A register of the program while it is made ready.

    Attributes:
        text: its name in the function.
        tensor: of shape [K, ...]: itself if it is kept, else one like it.
        kept: whether it is the same memory in every step.
        alone: whether nobody else reads it: it may be overwritten by the one who does.
    """

    text: str
    tensor: torch.Tensor
    kept: bool
    alone: bool = False


@dataclass(frozen=True)
class Given:
    """A number that comes with each call."""

    text: str


class Memory:
    """Results of steps: one block for all functions, since only one of them runs at a time."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def restart(self) -> None:
        """What follows may lie where everything before lies."""
        self._used = 0

    def take(self, shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Memory for a tensor, contiguous, with anything in it."""
        nbytes = prod(shape) * dtype.itemsize
        if self._used + nbytes > len(self._block):
            # Who has a piece of the old block keeps it.
            size = 2 * len(self._block) + nbytes
            self._block = torch.empty(size, dtype=torch.uint8, device=like.device)
            self._used = 0
        piece = self._block[self._used : self._used + nbytes].view(dtype).view(*shape)
        self._used += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return piece


class Building:
    """The function while it is written; what the table's entries work with.

    Attributes:
        k: models side by side.
    """

    def __init__(self, k: int, memory: Memory, like: torch.Tensor) -> None:
        self.k = k
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self._memory, self._like = memory, like

    def name(self, value: Any) -> str:
        """A name for something that stays what it is."""
        text = f"c{len(self.names)}"
        self.names[text] = value
        return text

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Calls a kernel in every step; what it gives back is of no interest."""
        self.lines.append(self._call(function, arguments, keywords))

    def view(self, function: Callable[..., torch.Tensor], of: Value, *arguments: Any) -> Value:
        """A view: made once if it is one of kept memory."""
        tensor = function(of.tensor, *arguments)
        if of.kept:
            return Value(self.name(tensor), tensor, True)
        text = f"v{len(self.lines)}"
        self.lines.append(f"{text} = {self._call(function, (of, *arguments), {})}")
        return Value(text, tensor, False)

    def result(self, *shape: int, dtype: torch.dtype | None = None) -> Value:
        """Memory for a result."""
        tensor = self._memory.take(shape, self._like, dtype or self._like.dtype)
        return Value(self.name(tensor), tensor, True)

    def constant(self, tensor: torch.Tensor) -> Value:
        """A tensor whose values stay."""
        return Value(self.name(tensor), tensor, True)

    def _call(
        self, function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]
    ) -> str:
        texts = [self._text(a) for a in arguments]
        texts += [f"{name}={self._text(a)}" for name, a in keywords.items()]
        return f"{self.name(function)}({', '.join(texts)})"

    def _text(self, argument: Any) -> str:
        if isinstance(argument, Value | Given):
            return argument.text
        return self.name(argument)
