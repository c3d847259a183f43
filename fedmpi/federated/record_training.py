"""The owner records the training step of a job's model once, for all of its workers.

A recording has no values: nothing that depends on the rows or the weights can get into it
unnoticed. What could is the state of Python code, such as a counter in a module, which would
stand still. Therefore only models are recorded whose every module is one of PyTorch's or
torchvision's own, without buffers and hooks. All others train step by step.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.training_step import autograd_step, trained
from fedmpi.models import Loss
from fedmpi.tensors.batch_size import generalise
from fedmpi.tensors.given_numbers import leave_open
from fedmpi.tensors.layout import layout_of
from fedmpi.tensors.plan import optimised
from fedmpi.tensors.record import record
from fedmpi.workers.operators import is_random, resolve
from fedmpi.workers.program import Program

SIZES = (2, 3, 5)
"""Batches that are recorded; what they have in common is the program for all from 2 up."""
_NUMBERS = (-0.6180339887498949, 0.4142135623730951)
"""Stand for the numbers of a step while it is recorded."""
_KNOWN = ("torch.nn.modules.", "torchvision.models.")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def record_training(
    model: nn.Module,
    loss_of: Loss,
    row_shape: tuple[int, ...],
    classes: int,
    descent: Descent = PLAIN,
) -> list[Program]:
    """Programs of `autograd_step` for a batch of one row and for larger ones.

    Their inputs are the model's parameters in order, what goes beside those that are trained (see
    `Descent`), x, y and the total; the call brings the descent's numbers.

    Args:
        model: on the CPU; it is not changed.
        loss_of: mean loss of a batch from (output, y).
        row_shape: shape of a row.
        classes: 0 for regression, whose targets are float32.
        descent: what is done with a gradient.

    Returns:
        The two programs, or none if the model has to be run step by step: it has modules of
        a person's own, buffers, hooks, random draws, or operators that cannot be recorded.
    """
    if not may_be_recorded(model):
        return []
    training = model.training
    model.train()
    try:
        return _programs(model, loss_of, row_shape, classes, descent)
    except Exception:
        # What autograd can do is not lost; what it cannot either, it will say itself.
        return []
    finally:
        model.train(training)


def may_be_recorded(model: nn.Module) -> bool:
    """Whether nothing but operators happens in the model's forward, whatever the values."""
    parameters = list(model.parameters())
    return (
        all(_is_known(module) for module in model.modules())
        and not any(True for _ in model.buffers())
        # A parameter without dimensions would become a number of the program.
        and all(p.dim() > 0 and not p._backward_hooks for p in parameters)
        # As they will lie in a worker's flat state.
        and all(type(p) is nn.Parameter and p.is_contiguous() for p in parameters)
        and not torch_module._has_any_global_hook()
    )


def _is_known(module: nn.Module) -> bool:
    return (
        f"{type(module).__module__}.".startswith(_KNOWN)
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
    )


def _programs(
    model: nn.Module,
    loss_of: Loss,
    row_shape: tuple[int, ...],
    classes: int,
    descent: Descent,
) -> list[Program]:
    beside = descent.beside([p.detach() for p in trained(model)])

    def step(
        model: nn.Module,
        beside: list[list[torch.Tensor]],
        x: torch.Tensor,
        y: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        autograd_step(model, loss_of, descent, beside, x, y, total, _NUMBERS)

    recorded = []
    states = [*model.parameters(), *(t for kind in beside for t in kind)]
    for size in (1, *SIZES):
        x = torch.zeros(size, *row_shape)
        y = torch.zeros(size, dtype=torch.int64 if classes else torch.float32)
        total = torch.zeros(1, dtype=torch.float64)
        inputs = [*states, x, y, total]
        recording = record(
            step, (model, beside, x, y, total), inputs, [layout_of(t) for t in inputs]
        )
        recorded.append(optimised(recording.assembled, fuse=True))
    programs = [recorded[0].program, generalise(recorded[1:], SIZES, len(states))[0]]
    if any(is_random(resolve(s.operator)) for p in programs for s in p.signatures):
        return []
    return [leave_open(program, _NUMBERS) for program in programs]
