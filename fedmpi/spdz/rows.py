"""Rows of a secret at public positions, whose mask goes along: the batches of a training."""

from __future__ import annotations

import torch

from fedmpi.spdz.table.lift import lift, secret_of
from fedmpi.tensors.pointer import PointerTensor, call
from fedmpi.tensors.shared import SharedTensor


def mask(x: SharedTensor) -> None:
    """Opens x - a for a random mask a now, so that no product with rows of x opens it again."""
    secret_of(x).masked()


def rows(x: SharedTensor, positions: torch.Tensor) -> SharedTensor:
    """Rows of x, each party's of its own share.

    Args:
        x: must not be written to as long as its rows are used.
        positions: which rows, in which order; everybody may know them. int64 [n].
    """
    secret = secret_of(x)
    # The dealer takes these rows of the mask.
    there = secret.group.public(positions, dealer=True)

    def look(share: PointerTensor) -> PointerTensor:
        found: PointerTensor = call(torch.ops.aten.index_select.default, (share, 0, there), {})
        return found

    return lift(secret.viewed(look, whole=False), x.dtype)
