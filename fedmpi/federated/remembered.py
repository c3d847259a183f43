"""What a part of a job carries from one round to the next, and a checkpoint therefore has to keep.

Everything else comes anew from the configuration, or from (seed, purpose, round, client).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from fedmpi.errors import DataError

State = dict[str, torch.Tensor]
"""Tensors by name. A plain number is a tensor without dimensions, a text is UTF-8 as uint8."""


class Remembers(Protocol):
    """Something with such a state. It always has the same names in it, whatever their values."""

    def state_dict(self) -> State:
        """What it carries to the next round; the tensors may be its own memory."""
        ...

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave; `DataError` if it is of something else."""
        ...


def state_of(parts: Mapping[str, Remembers]) -> State:
    """The states of all parts, copied to the CPU; a tensor's name has its part's before it."""
    return {
        f"{part}/{name}": tensor.detach().to("cpu", copy=True)
        for part, remembers in parts.items()
        for name, tensor in remembers.state_dict().items()
    }


def restore(parts: Mapping[str, Remembers], saved: Mapping[str, torch.Tensor]) -> None:
    """Gives every part back what `state_of` took of it.

    Raises:
        DataError: there is more, or less, than the parts have.
    """
    expected, found = state_of(parts).keys(), saved.keys()
    if expected != found:
        more, less = sorted(found - expected), sorted(expected - found)
        raise DataError(
            f"the state of another job: {', '.join(more) or 'nothing'} is in it that this job does "
            f"not have, and {', '.join(less) or 'nothing'} is missing"
        )
    for part, remembers in parts.items():
        own = f"{part}/"
        remembers.load_state_dict(
            {name.removeprefix(own): t for name, t in saved.items() if name.startswith(own)}
        )


def as_text(tensor: torch.Tensor) -> str:
    """The text of a uint8 tensor."""
    return tensor.numpy().tobytes().decode()


def from_text(text: str) -> torch.Tensor:
    """A text as uint8."""
    return torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)[
        : len(text.encode())
    ].clone()


def number(value: float | int) -> torch.Tensor:
    """A number as a tensor without dimensions: int64 or float64, so that nothing is rounded."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
