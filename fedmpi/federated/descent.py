"""What a step of local SGD does with a gradient: momentum, weight decay, FedProx, SCAFFOLD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Descent:
    """v = momentum v + (gradient + decay w + drift), w = w - lr v, as `torch.optim.SGD` does it.

    All that is not the gradient is linear in what stays the same for a client's whole turn. So
    FedProx's pull mu (w - w0) is a decay of mu and a drift of -mu w0, and SCAFFOLD's correction is
    a drift of c - c_k. Without momentum a decay is a factor on the weights, which the product that
    makes the gradient takes along.

    Attributes:
        momentum: of every client's own v, which begins with 0.
        decay: L2 penalty, FedProx's included.
        drifts: something constant is added to the gradients of a turn.
    """

    momentum: float = 0.0
    decay: float = 0.0
    drifts: bool = False

    @property
    def kinds(self) -> int:
        """How many tensors go with each parameter: its v, then its drift, if there are any."""
        return bool(self.momentum) + self.drifts

    def numbers(self, step_size: float) -> tuple[float, float]:
        """What a step brings anew: minus the learning rate, and the factor on the weights."""
        return step_size, 1 + step_size * self.decay

    def beside(self, parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Zeros like the parameters for every kind of tensor that goes with them."""
        return [[torch.zeros_like(p) for p in parameters] for _ in range(self.kinds)]

    def begin(
        self, beside: Sequence[Sequence[torch.Tensor]], drift: Sequence[torch.Tensor]
    ) -> None:
        """Makes ready for a client's first step.

        Args:
            beside: by kind, for each parameter.
            drift: of the turn, for each parameter; empty if nothing drifts.
        """
        if self.momentum:
            for moving in beside[0]:
                moving.zero_()
        if self.drifts:
            for mine, given in zip(beside[-1], drift, strict=True):
                mine.copy_(given)

    def take(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        beside: Sequence[torch.Tensor],
        numbers: Sequence[float],
    ) -> None:
        """Changes a parameter in place.

        Args:
            parameter: any shape.
            gradient: of the same shape.
            beside: its v and its drift, as many as `kinds` says.
            numbers: of the step, see there.
        """
        step_size, factor = numbers
        if self.momentum:
            moving = beside[0]
            moving.mul_(self.momentum).add_(gradient)
            if self.decay:
                moving.add_(parameter, alpha=self.decay)
            if self.drifts:
                moving.add_(beside[1])
            parameter.add_(moving, alpha=step_size)
            return
        if self.decay:
            parameter.mul_(factor)
        parameter.add_(gradient, alpha=step_size)
        if self.drifts:
            parameter.add_(beside[0], alpha=step_size)

    def reach(self, steps: int) -> float:
        """How far so many steps go under a constant gradient; one without momentum goes 1.

        The norm of a_k of Wang et al. 2020, section 4: with momentum rho it is
        (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho), without it is tau.
        """
        rho = self.momentum
        if not rho:
            return steps
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


PLAIN = Descent()
"""w = w - lr gradient."""
