"""FedProx: clients are pulled towards the model that they started from."""

from __future__ import annotations

import torch

from fedmpi.config import DEFAULTS, Config
from fedmpi.federated.client_step import ClientStep
from fedmpi.federated.strategy import Strategy
from fedmpi.federated.update import Turn


class Proximal(ClientStep):
    """Adds mu/2 |w - w0|^2 to the loss: w = w - lr (gradient + mu (w - w0)).

    That is a weight decay of mu, and a drift of -mu w0. It is on what clients train, not on the
    running statistics of batch norm. A step costs a pass over the parameters more.
    """

    drifts = True

    @classmethod
    def decay(cls, config: Config) -> float:
        return config.federated.strategy.number("mu")

    def drift(self, turn: Turn) -> torch.Tensor:
        start = self.trainer.state.trained_in(self.trainer.start)
        return torch.cat([t.float() for t in start]).mul_(-self.decay(self.trainer.config))


class FedProx(Strategy):
    """Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2.

    Clients weigh as in FedAvg, and all of them end their epochs: partial work is not simulated.
    """

    defaults = DEFAULTS["fedprox"]
    client_step = Proximal
