"""The greatest of several secrets: neighbours meet, level by level, all pairs of a level at once.

Of equal ones the first wins, as in PyTorch. Nobody learns who wins; the bits of each level are
kept, so that a gradient finds its way back without another comparison.
"""

from __future__ import annotations

import torch

from fedmpi.spdz.table.lift import lift, secret_of


class Tournament:
    """Among the elements of the last dimension.

    Args:
        players: secret, [..., n], n at least 1.

    Attributes:
        winner: [...].
    """

    def __init__(self, players: torch.Tensor) -> None:
        self.size = players.shape[-1]
        self._levels: list[torch.Tensor] = []
        while (n := players.shape[-1]) > 1:
            first, second = players[..., 0 : n - 1 : 2], players[..., 1:n:2]
            lead = first - second
            bit = lift(secret_of(lead).sign(), torch.bool)
            self._levels.append(bit)
            won = first - bit * lead
            players = torch.cat([won, players[..., n - 1 :]], -1) if n % 2 else won
        self.winner = players[..., 0]

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """A value for the winner, [..., 1], at the winner's place: [..., n], elsewhere 0."""
        values = grad
        for k in reversed(range(len(self._levels))):
            bit = self._levels[k]
            pairs = bit.shape[-1]
            met, spared = values[..., :pairs], values[..., pairs:]
            second = bit * met
            both = torch.stack([met - second, second], -1).flatten(-2)
            values = torch.cat([both, spared], -1) if spared.shape[-1] else both
        return values

    def label(self, labels: torch.Tensor) -> torch.Tensor:
        """The winner's among public whole numbers, [n] or [..., n]: a secret one."""
        names: torch.Tensor = labels
        for bit in self._levels:
            n = names.shape[-1]
            first, second = names[..., 0 : n - 1 : 2], names[..., 1:n:2]
            won = bit * (second - first) + first
            spared = names[..., n - 1 :].expand(*won.shape[:-1], 1)
            names = torch.cat([won, spared], -1) if n % 2 else won
        return names[..., 0].expand(self.winner.shape)
