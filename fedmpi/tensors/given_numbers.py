"""Numbers of a program that each call brings anew, as a learning rate."""

from __future__ import annotations

from typing import Any

import msgspec

from fedmpi.workers.program import Program, Step
from fedmpi.workers.signature import Signature


def leave_open(program: Program, value: float) -> Program:
    """The program with a number of each call wherever this value stands.

    Args:
        program: after the passes, which look at numbers.
        value: that the function was recorded with, and that it uses for nothing else.
    """
    signatures = list(program.signatures)
    steps = []
    for step in program.steps:
        if value in step.numbers:
            signature = _opened(signatures[step.signature], step, value)
            if signature not in signatures:
                signatures.append(signature)
            step = msgspec.structs.replace(step, signature=signatures.index(signature))
        steps.append(step)
    return msgspec.structs.replace(program, signatures=signatures, steps=steps, numbers=1)


def _opened(signature: Signature, step: Step, value: float) -> Signature:
    def opened(argument: Any) -> Any:
        if isinstance(argument, list):
            return [opened(a) for a in argument]
        is_it = isinstance(argument, dict) and step.numbers[argument.get("number", -1)] == value
        return {"given": 0} if is_it and "number" in argument else argument

    return msgspec.structs.replace(
        signature,
        arguments=opened(signature.arguments),
        keywords={name: opened(a) for name, a in signature.keywords.items()},
    )
