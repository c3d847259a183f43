"""A step of SGD on a worker's resident model: a recorded program, or autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.models import Loss
from fedmpi.workers.building import Memory, NotStackable
from fedmpi.workers.program import Program, Replay
from fedmpi.workers.stacked import Stacked

READY = 128
"""Prepared steps that are kept: one for each batch size and place in a stack."""


def autograd_step(
    model: nn.Module,
    loss_of: Loss,
    descent: Descent,
    beside: Sequence[Sequence[torch.Tensor]],
    x: torch.Tensor,
    y: torch.Tensor,
    total: torch.Tensor,
    numbers: Sequence[float],
) -> None:
    """Forward, mean loss, gradients, update in place. What `record_training` records.

    Args:
        model: its parameters are changed.
        loss_of: mean loss of a batch from (output, y).
        descent: what is done with a gradient.
        beside: what goes with the parameters that are trained, see `Descent`.
        x: float32 [b, ...].
        y: int64 or float32 [b].
        total: float64 [1], to which b times the mean loss is added.
        numbers: of the descent, for this step.
    """
    parameters = trained(model)
    with torch.enable_grad():
        loss = loss_of(model(x), y)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for k, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if gradient is not None:
                descent.take(parameter, gradient, [kind[k] for kind in beside], numbers)
        total.add_(loss.detach(), alpha=len(x))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a step changes, in order."""
    return [p for p in model.parameters() if p.requires_grad]


class StackedSteps:
    """A program on models side by side, prepared for each batch size and each part of the stack.

    Args:
        programs: for a batch of one row and for larger ones.
        models: the parameters and what is beside them, each [K, *shape]; they stay where they
            are in memory.
    """

    def __init__(self, programs: Sequence[Program], models: Sequence[torch.Tensor]) -> None:
        self._programs, self._models = programs, models
        self._memory = Memory()
        self._ready: dict[tuple[int, int, int], Stacked] = {}

    def ready(
        self, first: int, count: int, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor
    ) -> Stacked:
        """The step of `count` models from the first on.

        Args:
            first: of the models that take it.
            count: of them.
            x: like the batches, [count, n, ...].
            y: like the targets, [count, n].
            total: like the sums of losses, float64 [count, 1].

        Raises:
            NotStackable: the program cannot be run so.
        """
        key = first, count, x.shape[1]
        found = self._ready.get(key)
        if found is None:
            if len(self._ready) == READY:
                self._ready.pop(next(iter(self._ready)))
            models = [model[first : first + count] for model in self._models]
            program = self._programs[x.shape[1] > 1]
            found = self._ready[key] = Stacked(program, models, [x, y, total], self._memory)
        return found

    def check(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Tries what depends on the program and the shape of a row alone; no step is taken.

        Args:
            x: rows like those to come, [1 or more, ...].
            y: their targets.

        Raises:
            NotStackable: batches of one row, or of several, cannot be taken so.
        """
        total = torch.zeros(1, 1, dtype=torch.float64)
        for n in (1, 2):
            rows, targets = (t[:1].expand(1, n, *t.shape[1:]).contiguous() for t in (x, y))
            self.ready(0, 1, rows, targets, total)


class TrainingStep:
    """One step of SGD, again and again on one model.

    Args:
        model: its tensors stay where they are in memory; in training mode when it is called.
        loss_of: mean loss of a batch from (output, y).
        programs: of `record_training`: for a batch of one row and for larger ones, or none,
            and every step is `autograd_step`.
        descent: what is done with a gradient; programs have been recorded with it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_of: Loss,
        programs: Sequence[Program] = (),
        descent: Descent = PLAIN,
    ) -> None:
        self.model = model
        self.loss_of = loss_of
        self.descent = descent
        self.beside = descent.beside([p.detach() for p in trained(model)])
        parameters = [p.detach() for p in model.parameters()]
        self._states = [*parameters, *(t for kind in self.beside for t in kind)]
        self._replays = [Replay(program) for program in programs]
        one = [t.unsqueeze(0) for t in self._states]
        self._prepared = StackedSteps(programs, one) if programs else None
        self._checked = False

    def begin(self, drift: Sequence[torch.Tensor] = ()) -> None:
        """Makes ready for a client's first step, see `Descent.begin`."""
        self.descent.begin(self.beside, drift)

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, step_size: float
    ) -> None:
        """Takes a step, gradients being off; see `autograd_step`."""
        numbers = self.descent.numbers(step_size)
        if self._prepared and not self._checked:
            self._check(x, y)
        if self._prepared:
            batch = x.unsqueeze(0), y.unsqueeze(0), total.unsqueeze(0)
            self._prepared.ready(0, 1, *batch)(*batch, numbers)
        elif self._replays:
            replay = self._replays[len(x) > 1]
            replay([*self._states, x, y, total], numbers, 0)
        else:
            autograd_step(self.model, self.loss_of, self.descent, self.beside, x, y, total, numbers)

    def _check(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Settles once, by the first rows' shape, how all steps are taken."""
        assert self._prepared
        self._checked = True
        try:
            self._prepared.check(x, y)
        except NotStackable:
            self._prepared = None
