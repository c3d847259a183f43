"""A program as Python that a person can read."""

from __future__ import annotations

from typing import Any

from fedmpi.workers.program import Program, Step, last_uses, written_inputs


def code_of(program: Program, name: str = "plan") -> str:
    """The steps of a program, one a line; states are the inputs that it changes.

    Args:
        program: as it is sent to a worker.
        name: of the function.
    """
    states = written_inputs(program)
    names = {k: f"state{k}" if k in states else f"input{k}" for k in range(program.inputs)}
    names |= {k: f"t{k}" for k in range(program.inputs, program.registers)}
    inputs = [names[k] for k in range(program.inputs)]
    inputs += ["numbers"] * (program.numbers > 0)
    lines = [f"def {name}({', '.join(inputs)}):"]
    if program.batch != -1:
        lines.append(f"    n = {names[program.batch]}.shape[0]")
    for step, dying in zip(program.steps, last_uses(program), strict=True):
        signature = program.signatures[step.signature]
        arguments = [_text(a, step, names) for a in signature.arguments]
        arguments += [f"{k}={_text(a, step, names)}" for k, a in signature.keywords.items()]
        results = [names[r] if r != -1 else "_" for r in step.results]
        left = f"{', '.join(results)} = " if any(r != "_" for r in results) else ""
        freed = [names[k] for k in dying if k not in step.results]
        comment = f"  # frees {', '.join(freed)}" if freed else ""
        lines.append(f"    {left}{signature.operator}({', '.join(arguments)}){comment}")
    lines.append(f"    return {', '.join(names[k] for k in program.outputs)}")
    return "\n".join(lines)


def _text(argument: Any, step: Step, names: dict[int, str]) -> str:
    if isinstance(argument, list):
        return "[" + ", ".join(_text(a, step, names) for a in argument) + "]"
    if isinstance(argument, dict):
        [(kind, value)] = argument.items()
        if kind == "size":
            a, c = value
            return f"{a if a != 1 else ''}{' * ' if a != 1 else ''}n{f' + {c}' if c else ''}"
        if kind == "given":
            return f"numbers[{value}]"
        if kind == "tensor":
            return names[step.tensors[value]]
        if kind == "number":
            return repr(step.numbers[value])
        if kind == "scalar":
            return f"tensor({step.numbers[value[0]]!r}, dtype={value[1]})"
        return str(value)
    return repr(argument)
