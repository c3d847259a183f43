"""Where something was found, as a secret: worked out when somebody asks.

A maximum's index is seldom looked at, but its gradient has to find its way back. So an index
carries the choice that it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

import fedmpi.spdz.table.linear  # noqa: F401 - the handler of other unsqueezes
from fedmpi.spdz.secret import Secret
from fedmpi.spdz.table.lift import handles, lift, secret_of
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SECURE, SharedTensor

aten = torch.ops.aten


class Choice(Protocol):
    """Which k of the n elements of the last dimension were chosen."""

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """From [..., k], values for the chosen, to [..., n]: 0 for the others."""


class Places(Secret):
    """The secret index of a choice.

    Args:
        like: the chosen values, of the same shape.
        choice: that it stands for.
        dim: in which it was made; None: over all elements.
        kept: whether that dimension is still there.
        work_out: gives the index itself.
    """

    def __init__(
        self,
        like: Secret,
        choice: Choice,
        dim: int | None,
        kept: bool,
        work_out: Callable[[], torch.Tensor],
    ) -> None:
        super().__init__(like.share, 0, like.group)
        self.choice = choice
        self.dim = dim
        self.kept = kept
        self._work_out: Callable[[], torch.Tensor] | None = work_out
        self._like = like

    @property
    def share(self) -> PointerTensor:
        """Of the index, made when it is first needed."""
        if self._work_out is not None:
            work_out, self._work_out = self._work_out, None
            found = work_out()
            if not isinstance(found, SharedTensor):  # the only one was chosen
                like = lift(self._like, torch.int64)
                found = torch.zeros_like(like) + found
            self._share = secret_of(found.contiguous()).share
        return self._share

    @share.setter
    def share(self, value: PointerTensor) -> None:
        self._share = value

    def tensor(self) -> SharedTensor:
        """As the operator that made the choice returns it, without working it out."""
        found = lift(self._like, torch.int64)
        found.secret = self
        return found

    def with_dim(self) -> Places:
        """The same with the dimension of the choice put in."""
        assert self.dim is not None
        like = self._like.new(call(aten.unsqueeze.default, (self._like.share, self.dim), {}))

        def work_out() -> torch.Tensor:
            index: torch.Tensor = _unsqueeze_other(lift(self, torch.int64), self.dim)
            return index.clone()

        return Places(like, self.choice, self.dim, True, work_out)


def places_of(index: Any) -> Places | None:
    """What is known of an index that came from a choice."""
    found = secret_of(index) if isinstance(index, SharedTensor) else None
    return found if isinstance(found, Places) and found.unchanged else None


_unsqueeze_other = SECURE[aten.unsqueeze.default]


@handles(aten.unsqueeze.default)
def unsqueeze(x: torch.Tensor, dim: int) -> Any:
    """Autograd puts the dimension of a maximum back before it uses the index."""
    places = places_of(x)
    if places and not places.kept and dim % (x.dim() + 1) == places.dim:
        return places.with_dim().tensor()
    return _unsqueeze_other(x, dim)
