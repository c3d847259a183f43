"""What makes a recorded program faster without changing what it computes.

- `cancel_transposes`: a transpose of a transpose is the matrix itself.
- `fuse_updates`: a weight gradient that only feeds its own update is never stored: the two
  become one in-place GEMM, `w.addmm_(dy.t(), x, alpha=-lr)`, which takes a factor on the weight
  (its decay, or the momentum of a v) along as beta. The sum is rounded once instead of twice, so
  that results differ from the unfused ones within float rounding.
- `merge_views`: a sum that keeps a dimension only to lose it to a view loses it at once.
- `drop_dead`: operators whose results nobody reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from fedmpi.tensors.layout import Layout
from fedmpi.workers.program import Program, Step, roots
from fedmpi.workers.signature import Callee, Signature

_ADDMM = Signature(
    "addmm_",
    [{"tensor": 0}, {"tensor": 1}, {"tensor": 2}],
    {"beta": {"number": 1}, "alpha": {"number": 0}},
    0,
)
_SCALE = Signature("mul_.Tensor", [{"tensor": 0}, {"number": 0}], {}, 0)
_TRANSPOSE = Signature("t", [{"tensor": 0}], {}, 0)


@dataclass
class _Facts:
    """What the passes ask about a program.

    Attributes:
        made_by: register to the position of the step that makes it.
        reads: how often a register is read, outputs included.
        root: register to the one whose memory it looks at: itself, unless it is a view.
        writes: position of a step to the roots of what it changes in place.
    """

    made_by: dict[int, int]
    reads: Counter[int]
    root: dict[int, int]
    writes: list[set[int]]


def _facts(program: Program) -> _Facts:
    callees = [Callee(signature) for signature in program.signatures]
    root = roots(program, callees)
    made_by: dict[int, int] = {}
    reads = Counter(program.outputs)
    writes = []
    for position, step in enumerate(program.steps):
        reads.update(step.tensors)
        writes.append({root[step.tensors[slot]] for slot in callees[step.signature].written})
        made_by |= {register: position for register in step.results if register != -1}
    return _Facts(made_by, reads, root, writes)


def cancel_transposes(program: Program) -> Program:
    """A transpose of a transpose is the matrix itself: autograd records many of them."""
    source: dict[int, int] = {}
    same: dict[int, int] = {}
    steps = []
    for step in program.steps:
        tensors = [same.get(register, register) for register in step.tensors]
        if program.signatures[step.signature] == _TRANSPOSE:
            [made] = step.results
            if tensors[0] in source:
                same[made] = source[tensors[0]]
                continue
            source[made] = tensors[0]
        steps.append(msgspec.structs.replace(step, tensors=tensors))
    outputs = [same.get(register, register) for register in program.outputs]
    return msgspec.structs.replace(program, steps=steps, outputs=outputs)


def fuse_updates(program: Program, layouts: dict[int, Layout]) -> Program:
    """Gradient and update of a weight as one GEMM into the weight.

    Args:
        program: as recorded.
        layouts: of its registers.
    """
    facts = _facts(program)
    signatures = list(program.signatures)
    steps: list[Step | None] = list(program.steps)
    registers = program.registers

    def name(position: int) -> str:
        return program.signatures[program.steps[position].signature].operator

    def number(signature: Signature) -> int:
        if signature not in signatures:
            signatures.append(signature)
        return signatures.index(signature)

    before: dict[int, list[Step]] = {}
    for position, step in enumerate(program.steps):
        alpha = _alpha(program, step) if name(position) == "add_.Tensor" else None
        if alpha is None:
            continue
        weight, gradient = step.tensors
        chain = [facts.made_by.get(gradient)]
        if chain[0] is not None and name(chain[0]) == "t":
            chain.append(facts.made_by.get(program.steps[chain[0]].tensors[0]))
        product = chain[-1]
        if product is None or name(product) != "mm":
            continue
        links = [program.steps[k].results[0] for k in chain if k is not None]
        a, b = program.steps[product].tensors
        touched = set().union(*facts.writes[product + 1 : position])
        if (
            any(facts.reads[register] != 1 for register in links)
            # The GEMM reads its factors while it writes the weight.
            or {facts.root[a], facts.root[b]} & (touched | {facts.root[weight]})
            or layouts[weight].shape != layouts[gradient].shape
            or layouts[weight].dtype != layouts[gradient].dtype
        ):
            continue
        factors = [a, b]
        if len(chain) == 2:  # (a b)' = b' a'
            factors = []
            for factor in (b, a):
                maker = facts.made_by.get(factor)
                if maker is not None and name(maker) == "t":
                    factors.append(program.steps[maker].tensors[0])
                else:
                    view = Step(number(_TRANSPOSE), [factor], [], [registers])
                    before.setdefault(position, []).append(view)
                    factors.append(registers)
                    registers += 1
        beta: float | int = 1
        scale = _scaled(program, facts, position)
        if scale is not None:
            [beta], steps[scale] = program.steps[scale].numbers, None
        steps[position] = Step(number(_ADDMM), [weight, *factors], [alpha, beta], [-1])
        for link in chain:
            if link is not None:
                steps[link] = None
    fused = [
        one
        for position, step in enumerate(steps)
        for one in (*before.get(position, ()), step)
        if one is not None
    ]
    return msgspec.structs.replace(program, signatures=signatures, steps=fused, registers=registers)


def _scaled(program: Program, facts: _Facts, position: int) -> int | None:
    """The step that multiplies by a number what this one adds to, if nothing is between them."""
    weight = program.steps[position].tensors[0]
    for before in range(position - 1, -1, -1):
        step = program.steps[before]
        if program.signatures[step.signature] == _SCALE and step.tensors == [weight]:
            return before
        if facts.root[weight] in {facts.root[r] for r in step.tensors}:
            return None
    return None


def _alpha(program: Program, step: Step) -> float | int | None:
    """The factor of an in-place addition of two tensors; None if it is something else."""
    signature = program.signatures[step.signature]
    if signature.arguments != [{"tensor": 0}, {"tensor": 1}]:
        return None
    alpha: Any = signature.keywords.get("alpha", 1)
    if isinstance(alpha, dict):
        return step.numbers[alpha["number"]] if "number" in alpha else None
    return alpha if isinstance(alpha, int) else None


def merge_views(program: Program, layouts: dict[int, Layout]) -> Program:
    """A sum that keeps a dimension only to lose it to a view loses it at once."""
    facts = _facts(program)
    signatures = list(program.signatures)
    steps = list(program.steps)
    for position, step in enumerate(program.steps):
        view = program.signatures[step.signature]
        maker = facts.made_by.get(step.tensors[0]) if view.operator == "view" else None
        if maker is None or facts.reads[step.tensors[0]] != 1:
            continue
        made = program.steps[maker]
        summed = program.signatures[made.signature]
        if summed.operator != "sum.dim_IntList" or summed.arguments[2:] != [True]:
            continue
        whole, lost = layouts[made.tensors[0]].shape, summed.arguments[1]
        if view.arguments[1] != [n for k, n in enumerate(whole) if k not in lost]:
            continue
        signatures.append(msgspec.structs.replace(summed, arguments=summed.arguments[:2]))
        steps[maker] = msgspec.structs.replace(
            made, signature=len(signatures) - 1, results=step.results
        )
        steps[position] = msgspec.structs.replace(step, results=[-1])
    return msgspec.structs.replace(program, signatures=signatures, steps=steps)


def drop_dead(program: Program) -> Program:
    """Without the steps that change nothing and whose results nobody reads.

    What has no result at all is there to raise an error, as linalg.inv checks its matrix.
    """
    callees = [Callee(signature) for signature in program.signatures]
    needed = set(program.outputs)
    kept = []
    for step in reversed(program.steps):
        checks = not callees[step.signature].operator._schema.returns
        if checks or callees[step.signature].written or needed.intersection(step.results):
            needed.update(step.tensors)
            kept.append(step)
    return msgspec.structs.replace(program, steps=kept[::-1])


def renumber(program: Program) -> Program:
    """Without signatures that no step names."""
    used = sorted({step.signature for step in program.steps})
    place = {old: new for new, old in enumerate(used)}
    return msgspec.structs.replace(
        program,
        signatures=[program.signatures[k] for k in used],
        steps=[msgspec.structs.replace(s, signature=place[s.signature]) for s in program.steps],
    )
