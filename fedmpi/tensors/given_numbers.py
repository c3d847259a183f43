"""Numbers of a program that each call brings anew, as a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fedmpi.workers.program import Program, Step
from fedmpi.workers.signature import Signature


def leave_open(program: Program, values: Sequence[float]) -> Program:
    """The program with the k-th number of each call wherever the k-th of these values stands.

    Args:
        program: after the passes, which look at numbers.
        values: that the function was recorded with, and that it uses for nothing else.
    """
    signatures = list(program.signatures)
    steps = []
    for step in program.steps:
        if not set(values).isdisjoint(step.numbers):
            signature = _opened(signatures[step.signature], step, values)
            if signature not in signatures:
                signatures.append(signature)
            step = msgspec.structs.replace(step, signature=signatures.index(signature))
        steps.append(step)
    return msgspec.structs.replace(program, signatures=signatures, steps=steps, numbers=len(values))


def _opened(signature: Signature, step: Step, values: Sequence[float]) -> Signature:
    def opened(argument: Any) -> Any:
        if isinstance(argument, list):
            return [opened(a) for a in argument]
        if not (isinstance(argument, dict) and "number" in argument):
            return argument
        number = step.numbers[argument["number"]]
        return {"given": values.index(number)} if number in values else argument

    return msgspec.structs.replace(
        signature,
        arguments=opened(signature.arguments),
        keywords={name: opened(a) for name, a in signature.keywords.items()},
    )
