"""One program for all batch sizes: what the recordings at several sizes have in common.

A function is recorded at three sizes. Wherever the three programs differ, whole numbers must
grow in step with the size (`a * n + c`); then that formula takes their place, and the worker
reads n off an input. Sizes 0 and 1 are recorded for themselves: PyTorch broadcasts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from fedmpi.errors import UsageError
from fedmpi.tensors.assemble import Assembled
from fedmpi.tensors.layout import Layout, layout
from fedmpi.workers.program import Program, Step
from fedmpi.workers.signature import Signature

STEPS = (0, 1, 3)
"""Recorded at n, n + 1 and n + 3: two would fit any line."""

Whole = int | tuple[int, int]
"""A number, or (a, c) for a * n + c."""


@dataclass(frozen=True)
class Growing:
    """A layout that depends on the batch size.

    Attributes:
        shape, stride, offset: numbers, or (a, c) for a * n + c.
        dtype: of the values.
    """

    shape: tuple[Whole, ...]
    stride: tuple[Whole, ...]
    offset: Whole
    dtype: torch.dtype

    def at(self, n: int) -> Layout:
        """The layout for a batch of n rows."""
        return layout(
            tuple(_at(v, n) for v in self.shape),
            tuple(_at(v, n) for v in self.stride),
            _at(self.offset, n),
            self.dtype,
        )


def generalise(
    recorded: Sequence[Assembled], sizes: Sequence[int], batch: int
) -> tuple[Program, list[Growing], list[Growing | int]]:
    """One program for all sizes, the layouts of its inputs and of its results.

    Args:
        recorded: the same function at several batch sizes, after the passes.
        sizes: these sizes.
        batch: number of an input whose first dimension is the size.

    Raises:
        UsageError: the programs differ in more than such numbers.
    """
    programs = [one.program for one in recorded]
    first = programs[0]
    signatures: list[Signature] = []
    steps = []
    for parts in _together([p.steps for p in programs]):
        called = [p.signatures[s.signature] for p, s in zip(programs, parts, strict=True)]
        signature = _common(called, sizes)
        if signature not in signatures:
            signatures.append(signature)
        step = parts[0]
        if any((s.tensors, s.numbers, s.results) != _filled(step) for s in parts):
            raise _not_linear(signature.operator)
        steps.append(msgspec.structs.replace(step, signature=signatures.index(signature)))
    inputs = [_growing([one.registers[k] for one in recorded], sizes) for k in range(first.inputs)]
    results = [
        part[0] if isinstance(part[0], int) else _growing(part, sizes)
        for part in _together([one.results for one in recorded])
    ]
    program = msgspec.structs.replace(first, signatures=signatures, steps=steps, batch=batch)
    return program, inputs, results


def _filled(step: Step) -> tuple[Any, ...]:
    return step.tensors, step.numbers, step.results


def _common(called: Sequence[Signature], sizes: Sequence[int]) -> Signature:
    """The signature with formulas where the given ones differ."""
    name = called[0].operator
    if any(s.operator != name or s.keywords.keys() != called[0].keywords.keys() for s in called):
        raise _not_linear(name)
    keywords = {
        key: _value([s.keywords[key] for s in called], sizes, name) for key in called[0].keywords
    }
    return Signature(name, _value([s.arguments for s in called], sizes, name), keywords, 0)


def _value(values: Sequence[Any], sizes: Sequence[int], name: str) -> Any:
    first = values[0]
    if all(v == first for v in values):
        return first
    if all(isinstance(v, list) and len(v) == len(first) for v in values):
        return [_value(part, sizes, name) for part in zip(*values, strict=True)]
    if all(type(v) is int for v in values):
        return {"size": list(_line(values, sizes, name))}
    raise _not_linear(name)


def _line(values: Sequence[int], sizes: Sequence[int], name: str) -> tuple[int, int]:
    """(a, c) with value = a * size + c."""
    a = (values[1] - values[0]) // (sizes[1] - sizes[0])
    c = values[0] - a * sizes[0]
    if any(a * n + c != v for v, n in zip(values, sizes, strict=True)):
        raise _not_linear(name)
    return a, c


def _growing(layouts: Sequence[Layout | int], sizes: Sequence[int]) -> Growing:
    found = [one for one in layouts if isinstance(one, Layout)]
    if len({(len(one.shape), one.dtype) for one in found}) != 1 or len(found) != len(layouts):
        raise _not_linear("its result")

    def whole(values: Sequence[int]) -> Whole:
        same = all(v == values[0] for v in values)
        return values[0] if same else _line(values, sizes, "its result")

    return Growing(
        tuple(whole(v) for v in zip(*(one.shape for one in found), strict=True)),
        tuple(whole(v) for v in zip(*(one.stride for one in found), strict=True)),
        whole([one.offset for one in found]),
        found[0].dtype,
    )


def _together(lists: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    if len({len(one) for one in lists}) != 1:
        raise _not_linear("what runs")
    return list(zip(*lists, strict=True))


def _at(value: Whole, n: int) -> int:
    return value if isinstance(value, int) else value[0] * n + value[1]


def _not_linear(what: str) -> UsageError:
    return UsageError(
        f"a plan for all batch sizes cannot be made: {what} depends on the size in a way of its "
        "own; leave dynamic=True out, and it is recorded for each size"
    )
