"""A step of SGD on a worker's resident model: a recorded program, or autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fedmpi.models import Loss
from fedmpi.workers.building import Memory, NotStackable
from fedmpi.workers.program import Program, Replay
from fedmpi.workers.stacked import Stacked

READY = 128
"""Prepared steps that are kept: one for each batch size and place in a stack."""


def autograd_step(
    model: nn.Module,
    loss_of: Loss,
    x: torch.Tensor,
    y: torch.Tensor,
    total: torch.Tensor,
    step_size: float,
) -> None:
    """Forward, mean loss, gradients, update in place. What `record_training` records.

    Args:
        model: its parameters are changed.
        loss_of: mean loss of a batch from (output, y).
        x: float32 [b, ...].
        y: int64 or float32 [b].
        total: float64 [1], to which b times the mean loss is added.
        step_size: minus the learning rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        loss = loss_of(model(x), y)
        # Autograd would make its own 1, and a program would make one at every step.
        one = torch.ones((), dtype=loss.dtype, device=x.device)
        gradients = torch.autograd.grad(loss, parameters, one, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient, alpha=step_size)
        total.add_(loss.detach(), alpha=len(x))


class StackedSteps:
    """A program on models side by side, prepared for each batch size and each part of the stack.

    Args:
        programs: for a batch of one row and for larger ones.
        models: the parameters, each [K, *shape]; they stay where they are in memory.
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
    """

    def __init__(self, model: nn.Module, loss_of: Loss, programs: Sequence[Program] = ()) -> None:
        self.model = model
        self.loss_of = loss_of
        self._parameters = [p.detach() for p in model.parameters()]
        self._replays = [Replay(program) for program in programs]
        one = [p.unsqueeze(0) for p in self._parameters]
        self._prepared = StackedSteps(programs, one) if programs else None
        self._checked = False

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, step_size: float
    ) -> None:
        """Takes a step, gradients being off; see `autograd_step`."""
        if self._prepared and not self._checked:
            self._check(x, y)
        if self._prepared:
            batch = x.unsqueeze(0), y.unsqueeze(0), total.unsqueeze(0)
            self._prepared.ready(0, 1, *batch)(*batch, (step_size,))
        elif self._replays:
            replay = self._replays[len(x) > 1]
            replay([*self._parameters, x, y, total], (step_size,), 0)
        else:
            autograd_step(self.model, self.loss_of, x, y, total, step_size)

    def _check(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Settles once, by the first rows' shape, how all steps are taken."""
        assert self._prepared
        self._checked = True
        try:
            self._prepared.check(x, y)
        except NotStackable:
            self._prepared = None
