"""Secrets in order: Batcher's network of comparisons, each layer of it in one go.

Source: K. E. Batcher, "Sorting networks and their applications" (AFIPS 1968): odd-even merging.
Which two places meet is known beforehand, so the order stays secret. It is not stable: of equal
ones any may come first.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from fedmpi.spdz.table.lift import lift, secret_of


class Layer(NamedTuple):
    """Pairs that meet at the same time.

    Attributes:
        first: places.
        second: those that they meet.
        rest: places that meet nobody.
        order: where each place is found in `first`, `second` and `rest` together.
    """

    first: torch.Tensor
    second: torch.Tensor
    rest: torch.Tensor
    order: torch.Tensor


@cache
def network(n: int) -> tuple[Layer, ...]:
    """The layers that sort n elements."""
    layers = []
    p = 1
    while p < n:
        k = p
        while k:
            pairs = [
                (i + j, i + j + k)
                for j in range(k % p, n - k, 2 * k)
                for i in range(min(k, n - j - k))
                if (i + j) // (2 * p) == (i + j + k) // (2 * p)
            ]
            met = {place for pair in pairs for place in pair}
            lists = [
                [a for a, _ in pairs],
                [b for _, b in pairs],
                [m for m in range(n) if m not in met],
            ]
            first, second, rest = (torch.tensor(one, dtype=torch.int64) for one in lists)
            layers.append(Layer(first, second, rest, torch.cat([first, second, rest]).argsort()))
            k //= 2
        p *= 2
    return tuple(layers)


class Sorting:
    """The elements of the last dimension, the greatest first.

    Args:
        players: secret, [..., n].
        count: how many of them are wanted.

    Attributes:
        values: [..., count].
    """

    def __init__(self, players: torch.Tensor, count: int) -> None:
        self.size, self.count = players.shape[-1], count
        self._bits: list[torch.Tensor] = []
        for layer in network(self.size):
            first = players.index_select(-1, layer.first)
            lead = first - players.index_select(-1, layer.second)
            self._bits.append(lift(secret_of(lead).sign(), torch.bool))
            players = _exchanged(players, layer, self._bits[-1], lead)
        self.values = players[..., :count]

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """Values for the chosen, at their places: [..., n]."""
        grad = torch.nn.functional.pad(grad, (0, self.size - self.count))
        for layer, bit in zip(reversed(network(self.size)), reversed(self._bits), strict=True):
            grad = _exchanged(grad, layer, bit)
        return grad

    def label(self, labels: torch.Tensor) -> torch.Tensor:
        """Public whole numbers, [n], in the same order: secret, [..., count]."""
        for layer, bit in zip(network(self.size), self._bits, strict=True):
            labels = _exchanged(labels.expand(*bit.shape[:-1], self.size), layer, bit)
        return labels[..., : self.count]


def _exchanged(
    x: torch.Tensor, layer: Layer, bit: torch.Tensor, lead: torch.Tensor | None = None
) -> torch.Tensor:
    """Each pair the other way round where its bit is set."""
    first, second = x.index_select(-1, layer.first), x.index_select(-1, layer.second)
    moved = bit * (first - second if lead is None else lead)
    parts = [first - moved, second + moved, x.index_select(-1, layer.rest)]
    return torch.cat(parts, -1).index_select(-1, layer.order)
