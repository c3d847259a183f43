"""From recorded calls to a program: ids become registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedmpi.tensors.calls import Known
from fedmpi.tensors.layout import Layout
from fedmpi.workers.program import Program, Step
from fedmpi.workers.signature import Number


class Recorded(NamedTuple):
    """One call of an operator.

    Attributes:
        known: the call.
        tensors: ids of its tensors.
        numbers: that fill its number slots.
        results: ids of its results, 0 for none.
    """

    known: Known
    tensors: list[int]
    numbers: list[Number]
    results: list[int]


class Assembled(NamedTuple):
    """A program and what the owner knows of it.

    Attributes:
        program: for the wire.
        registers: layouts of what the registers hold.
        results: of each output, a new layout, or the number of the input that it is.
    """

    program: Program
    registers: dict[int, Layout]
    results: list[Layout | int]


def assemble(
    calls: Sequence[Recorded], inputs: Mapping[int, Layout], outputs: Sequence[int]
) -> Assembled:
    """Makes a program of calls.

    Args:
        calls: in order.
        inputs: layouts of the objects that are there before, by id, in the order of the inputs.
        outputs: ids of the objects that are wanted afterwards.
    """
    register = {key: k for k, key in enumerate(inputs)}
    layouts = dict(enumerate(inputs.values()))
    position: dict[Known, int] = {}
    steps = []
    for known, tensors, numbers, results in calls:
        read = [register[key] for key in tensors]
        made = []
        for key, there in zip(results, known.results, strict=True):
            if not isinstance(there, Layout):
                made.append(-1)
                continue
            new = register.setdefault(key, len(register))
            layouts[new] = there
            made.append(new)
        steps.append(Step(position.setdefault(known, len(position)), read, numbers, made))
    wanted = [register[key] for key in outputs]
    results_of = [k if k < len(inputs) else layouts[k] for k in wanted]
    program = Program(
        signatures=[known.signature for known in position],
        steps=steps,
        inputs=len(inputs),
        outputs=wanted,
        registers=len(register),
        nbytes=sum(one.nbytes() for one in results_of if isinstance(one, Layout)),
    )
    return Assembled(program, layouts, results_of)
