"""A recorded program made ready for one batch size and K models side by side, in kept memory.

`Replay` runs a program of any shapes on one model. Here all shapes are known and the models stay
where they are, so that everything else can be settled beforehand: every tensor gets a leading
dimension for the K models (products become `bmm` and `baddbmm_`), results lie in memory that is
kept from step to step, and views of what is kept are made once. What is left of a step is a
Python function that calls the kernels.

How an operator is taken is in the table of `stackable`; a program with another one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import torch

from fedmpi.comm.frame import DTYPES
from fedmpi.workers.building import Building, Given, Memory, NotStackable, Value
from fedmpi.workers.program import Program, Step, roots
from fedmpi.workers.signature import MEMORY_FORMATS, Callee
from fedmpi.workers.stackable import TABLE, Labels


class Stacked:
    """A program on K models that stay where they are; a call takes one step of each.

    Args:
        program: one operator after another, whose first inputs are the states.
        states: the inputs that stay, each [K, *shape].
        others: like the inputs that each call brings, each [K, *shape]; values are not read.
        memory: for the results of its steps, shared with others that run at other times.

    Raises:
        NotStackable: an operator that the table does not have, or has not for such arguments.
    """

    def __init__(
        self,
        program: Program,
        states: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        memory: Memory,
    ) -> None:
        if program.outputs or len(states) + len(others) != program.inputs:
            raise NotStackable("a program with results")
        memory.restart()
        build = Building(len(states[0]), memory, states[0])
        names = [f"given{k}" for k in range(len(others))]
        registers: dict[int, Any] = dict(enumerate(Value(build.name(t), t, True) for t in states))
        for k, (name, tensor) in enumerate(zip(names, others, strict=True), len(states)):
            registers[k] = Value(name, tensor, False)
        batch = registers[program.batch].tensor.shape[1] if program.batch != -1 else 0
        callees = [Callee(signature) for signature in program.signatures]
        lonely = _lonely(program, callees)
        for step in program.steps:
            signature = program.signatures[step.signature]
            take = TABLE.get(signature.operator)
            if take is None:
                raise NotStackable(signature.operator)
            arguments = [_value(a, step, registers, batch) for a in signature.arguments]
            keywords = {
                name: _value(a, step, registers, batch) for name, a in signature.keywords.items()
            }
            try:
                made = take(build, *arguments, **keywords)
            except (TypeError, RuntimeError, IndexError, AttributeError) as error:
                raise NotStackable(f"{signature.operator}: {error}") from error
            values = made if isinstance(made, tuple) else (made,)
            for register, value in zip(step.results, values, strict=False):
                if register != -1 and isinstance(value, Labels):
                    registers[register] = value
                elif register != -1 and value is not None:
                    alone = register in lonely
                    registers[register] = Value(value.text, value.tensor, value.kept, alone)
        source = "\n    ".join([f"def step({', '.join([*names, 'numbers'])}):", *build.lines])
        exec(_compiled(source), build.names)
        self._step: Callable[..., None] = build.names["step"]

    def __call__(self, *others: Any) -> None:
        """Takes a step, gradients being off: the inputs that stay not, and the numbers."""
        self._step(*others)


@lru_cache(maxsize=64)
def _compiled(source: str) -> CodeType:
    """Programs of the same steps have the same text: what differs has a name in it."""
    return compile(source, "<stacked plan>", "exec")


def _lonely(program: Program, callees: Sequence[Callee]) -> set[int]:
    """Results that are read once, and of which there is no view."""
    root = roots(program, callees)
    reads = Counter(register for step in program.steps for register in step.tensors)
    seen = {of for register, of in root.items() if register != of}
    made = {r for step in program.steps if step.tensors for r in step.results}
    return {r for r in made - seen if reads[r] == 1 and root.get(r) == r}


def _value(argument: Any, step: Step, registers: dict[int, Any], n: int) -> Any:
    """An argument of the recorded step: a value, a number, or what it stands for."""
    if isinstance(argument, list):
        return [_value(a, step, registers, n) for a in argument]
    if not isinstance(argument, dict):
        return argument
    [(kind, what)] = argument.items()
    if kind == "tensor":
        return registers[step.tensors[what]]
    if kind == "number":
        return step.numbers[what]
    if kind == "size":
        return what[0] * n + what[1]
    if kind == "given" and type(what) is int:
        return Given(f"numbers[{what}]")
    if kind == "dtype":
        return DTYPES[what]
    if kind == "memory_format":
        return MEMORY_FORMATS[what]
    raise NotStackable(f"an argument {kind}")
