"""Programs: operators recorded once, sent once, and run again and again by one call.

A program is a list of steps over registers. On arrival each step is checked as a call of
its own would be; then the steps become the lines of one Python function, so that running
it costs little more than the kernels. The function is made here of register numbers and
listed operators: no text from the wire gets into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.workers.operators import drawing
from fedmpi.workers.signature import Callee, Number, Signature, fill

MOST_STEPS = 100_000
"""Of a program; a training step of ResNet-18 has some 700."""
MOST_ARGUMENTS = 1_000_000
"""Of all steps together, those in lists too: each becomes a word of the function's text, and many
steps may share one signature. A step has ten or so."""

QUICK: dict[str, Callable[..., Any]] = {
    "_log_softmax": torch._log_softmax,
    "add.Tensor": torch.add,
    "add_.Tensor": torch.Tensor.add_,
    "addmm": torch.addmm,
    "addmm_": torch.Tensor.addmm_,
    "convolution": torch.convolution,
    "div.Tensor": torch.div,
    "mm": torch.mm,
    "mul.Tensor": torch.mul,
    "mul_.Tensor": torch.Tensor.mul_,
    "relu": torch.relu,
    "sub.Tensor": torch.sub,
    "sum.dim_IntList": torch.sum,
    "t": torch.t,
    "tanh": torch.tanh,
    "view": torch.Tensor.view,
}
"""Operators that PyTorch's own Python calls sooner (0.3 us) than the door that all of them have."""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One operator of a program.

    Attributes:
        signature: position in the program's list.
        tensors: registers that fill the tensor slots.
        numbers: that fill the number slots.
        results: registers of the results, -1 for one that nobody needs, or that is an
            argument changed in place.
    """

    signature: int
    tensors: list[int]
    numbers: list[Number]
    results: list[int]


class Program(msgspec.Struct, frozen=True, array_like=True, tag="program"):
    """Steps over registers; the inputs are registers 0, 1, ...

    Attributes:
        signatures: that the steps name by position.
        steps: in order.
        inputs: how many.
        outputs: registers of the results.
        registers: how many there are.
        nbytes: memory that the outputs take, as the owner reckons.
        batch: input whose first dimension is the n of {"size": [a, c]}, a * n + c, which may
            stand for a number among the arguments; -1: none.
        numbers: how many a call brings; {"given": k} among the arguments stands for number k.
    """

    signatures: list[Signature]
    steps: list[Step]
    inputs: int
    outputs: list[int]
    registers: int
    nbytes: int
    batch: int = -1
    numbers: int = 0


class Replay:
    """A program, ready to be run; called as a `Callee` is.

    Attributes:
        name: for messages.
        nbytes: as the program says.
        written: inputs that are changed in place.
        accepted: its results may leave the worker, whatever they come of.
        numbers: how many numbers a run takes: one for each step, if any step has one.

    Raises:
        UnlistedOperator: a step names an operator that is not on the list.
        ProtocolError: steps that do not fit together.
    """

    name = "a plan"

    def __init__(self, program: Program) -> None:
        self.nbytes = program.nbytes
        self.accepted = False
        self._inputs, self._numbers = program.inputs, program.numbers
        _check(program)
        self.written = written_inputs(program)
        callees = [Callee(signature) for signature in program.signatures]
        self.numbers = len(program.steps) if any(c.numbered for c in callees) else 0
        names: dict[str, Any] = {"_drawing": drawing}
        try:
            lines = list(_lines(program, callees, names))
        except (IndexError, TypeError, ValueError) as error:
            raise ProtocolError(f"a plan with an argument that is not there: {error}") from None
        source = "\n    ".join(["def replay(_given, _numbers, _seed):", *lines])
        exec(compile(source, "<plan>", "exec"), names)
        self._replay: Callable[..., list[torch.Tensor]] = names["replay"]

    def __call__(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[Number], seed: int
    ) -> list[torch.Tensor]:
        """Runs it, with gradients off."""
        if len(tensors) != self._inputs:
            raise ProtocolError(f"a plan of {self._inputs} inputs was given {len(tensors)}")
        if len(numbers) != self._numbers:
            raise ProtocolError(f"a plan of {self._numbers} numbers was given {len(numbers)}")
        return self._replay(tensors, numbers, seed)


def _check(program: Program) -> None:
    """Every register is written before it is read, and everything counted is there."""
    if len(program.steps) > MOST_STEPS:
        raise ProtocolError(f"a plan of {len(program.steps)} steps: at most {MOST_STEPS}")
    if not 0 <= program.inputs <= program.registers <= 2 * MOST_STEPS:
        raise ProtocolError(f"a plan of {program.inputs} inputs, {program.registers} registers")
    known, arguments = set(range(program.inputs)), 0
    sizes = [_size([*s.arguments, *s.keywords.values()]) for s in program.signatures]
    for step in program.steps:
        if not 0 <= step.signature < len(program.signatures):
            raise ProtocolError(f"a plan names signature {step.signature}, which it does not have")
        if not known.issuperset(step.tensors):
            raise ProtocolError("a plan reads a register before it is written")
        arguments += sizes[step.signature]
        if arguments > MOST_ARGUMENTS:
            raise ProtocolError(f"a plan whose steps have more than {MOST_ARGUMENTS:,} arguments")
        made = [r for r in step.results if r != -1]
        if not all(program.inputs <= r < program.registers for r in made):
            raise ProtocolError("a plan writes a register that it does not have")
        known.update(made)
    if not -1 <= program.batch < program.inputs:
        raise ProtocolError(f"a plan has no input {program.batch}")
    if not known.issuperset(program.outputs):
        raise ProtocolError("a plan returns a register that is never written")


def _size(argument: Any) -> int:
    """How many arguments a list has, those in lists of its lists too."""
    size, left = 0, [argument]
    while left:
        inner = left.pop()
        size += 1
        if isinstance(inner, list):
            left += inner
    return size


def roots(program: Program, callees: Sequence[Callee]) -> dict[int, int]:
    """Register to the one whose memory it looks at: itself, unless it is a view."""
    found = {k: k for k in range(program.inputs)}
    for step in program.steps:
        returned = callees[step.signature].operator._schema.returns
        is_view = any(r.alias_info is not None for r in returned)
        for register in step.results:
            if register != -1:
                # A view looks at the memory of its first tensor.
                is_view = is_view and bool(step.tensors)
                found[register] = found[step.tensors[0]] if is_view else register
    return found


def written_inputs(program: Program) -> list[int]:
    """Inputs that the steps change in place, through views too."""
    callees = [Callee(signature) for signature in program.signatures]
    root = roots(program, callees)
    found = {
        root[step.tensors[slot]]
        for step in program.steps
        for slot in callees[step.signature].written
    }
    return sorted(k for k in found if k < program.inputs)


def last_uses(program: Program) -> list[list[int]]:
    """Registers that are read for the last time in each step; outputs and inputs are kept."""
    kept = set(program.outputs) | set(range(program.inputs))
    found = []
    for step in reversed(program.steps):
        mentioned = {r for r in (*step.tensors, *step.results) if r != -1}
        found.append(sorted(mentioned - kept))
        kept |= mentioned
    return found[::-1]


def _lines(program: Program, callees: list[Callee], names: dict[str, Any]) -> Iterator[str]:
    """The body of the function; what it names that is not a register goes into `names`."""
    if program.inputs:
        yield "".join(f"r{k}, " for k in range(program.inputs)) + "= _given"
    if program.batch != -1:
        yield f"n = r{program.batch}.shape[0]"
    for number, (step, dying) in enumerate(zip(program.steps, last_uses(program), strict=True)):
        callee = callees[step.signature]
        operator = f"f{step.signature}"
        names[operator] = QUICK.get(callee.name, callee.kernel)
        if callee.random:
            # Every step draws from a stream of its own.
            names[f"o{step.signature}"] = callee.operator
            operator = (
                f"_drawing(o{step.signature}, (_seed + {number * 0x9E3779B97F4A7C15}) % 2**63)"
            )
        signature = callee.signature
        arguments = [_text(a, step, program, names) for a in signature.arguments]
        arguments += [
            f"{_keyword(n, callee)}={_text(a, step, program, names)}"
            for n, a in signature.keywords.items()
        ]
        if callee.numbered:
            arguments.append(f"number=_seed + {number}")
        call = f"{operator}({', '.join(arguments)})"
        if callee.unfilled:
            call += ".zero_()"
        results = ["_" if r == -1 else f"r{r}" for r in step.results]
        single = len(callee.operator._schema.returns) == 1 and _is_tensor(callee)
        if all(r == "_" for r in results):
            yield call
        else:
            yield f"{results[0] if single else ''.join(f'{r}, ' for r in results)} = {call}"
        if dying:
            yield "del " + ", ".join(f"r{k}" for k in dying)
    yield "return [" + ", ".join(f"r{k}" for k in program.outputs) + "]"


def _is_tensor(callee: Callee) -> bool:
    return str(callee.operator._schema.returns[0].type) == "Tensor"


def _keyword(name: str, callee: Callee) -> str:
    # Only what the operator declares gets into the source.
    if name not in {argument.name for argument in callee.operator._schema.arguments}:
        raise ProtocolError(f"operator {callee.name} has no argument {name!r:.80}")
    return name


def _is_constant(argument: Any) -> bool:
    if isinstance(argument, list):
        return all(_is_constant(a) for a in argument)
    return not (isinstance(argument, dict) and argument.keys() & {"tensor", "size", "given"})


def _text(argument: Any, step: Step, program: Program, names: dict[str, Any]) -> str:
    """An argument as it stands in the function: a register, a list, or a named constant."""
    if isinstance(argument, list) and not _is_constant(argument):
        return "[" + ", ".join(_text(a, step, program, names) for a in argument) + "]"
    if isinstance(argument, dict) and "tensor" in argument:
        return f"r{step.tensors[argument['tensor']]}"
    if isinstance(argument, dict) and "size" in argument:
        a, c = argument["size"]
        if type(a) is not int or type(c) is not int:
            raise ProtocolError(f"an argument {argument!r:.80}")
        return f"({a} * n + {c})"
    if isinstance(argument, dict) and "given" in argument:
        which = argument["given"]
        if type(which) is not int or not 0 <= which < program.numbers:
            raise ProtocolError(f"an argument {argument!r:.80}")
        return f"_numbers[{which}]"
    name = f"k{len(names)}"
    names[name] = fill(argument)((), step.numbers)
    return name
