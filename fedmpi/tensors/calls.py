"""From an operator and its arguments to a call that a worker understands.

What depends on the kinds and layouts of the arguments alone (the layouts of the results,
found with PyTorch's fake tensors, and the signature for the wire) is worked out once and
kept. A call that is known costs a walk over its arguments and a look into a dict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map

from fedmpi.errors import UsageError
from fedmpi.tensors.layout import Layout, layout_of
from fedmpi.workers.operators import (
    UnlistedOperator,
    is_numbered,
    is_random,
    resolve,
    wire_name,
)
from fedmpi.workers.signature import Number, Signature

MOST_KNOWN = 8192
"""Known calls that are kept; a program with more of them starts over."""

Result = Layout | int | None
"""A new object's layout, the position of the tensor that was changed in place, or nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A call whose arguments are of a known kind.

    Attributes:
        number: of its signature on the wire.
        signature: for the wire.
        results: in order, lists among them laid out.
        shape: of the results: None is a single one, otherwise the constructor of the
            sequence that the operator returns.
        random: whether each call needs a seed.
        numbers: 1 if each call needs a number in its place, else 0.
    """

    number: int
    signature: Signature
    results: tuple[Result, ...]
    shape: Callable[[Iterable[Any]], Any] | None
    random: bool
    numbers: int


class Arguments:
    """One walk over an operator's arguments.

    Attributes:
        key: what the kind of the call depends on, hashable.
        tensors: that are elsewhere, in order.
        numbers: for the number slots.
    """

    __slots__ = ("_kind", "key", "numbers", "tensors")

    def __init__(self, kind: type[torch.Tensor]) -> None:
        self._kind = kind
        self.key: list[Any] = []
        self.tensors: list[Any] = []
        self.numbers: list[Number] = []

    def walk(self, value: Any) -> Any:
        """Takes in a value; returns it as the wire writes it."""
        kind = type(value)
        if kind is self._kind:
            self.key.append(value.layout_there)
            self.tensors.append(value)
            return {"tensor": len(self.tensors) - 1}
        if kind is float:
            self.key.append(float)
            self.numbers.append(value)
            return {"number": len(self.numbers) - 1}
        if kind is int or value is None or kind is str:
            self.key.append(value)
            return value
        if kind is bool:
            self.key.append((bool, value))
            return value
        if kind is list or kind is tuple or isinstance(value, list | tuple):
            self.key.append(len(value))
            self.key.append(list)
            return [self.walk(v) for v in value]
        return self._rare(value)

    def _rare(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if (
                value.dim()
                or value.is_complex()
                or type(value) not in (torch.Tensor, torch.nn.Parameter)
            ):
                raise TensorHere(
                    f"a tensor here {list(value.shape)} met a pointer: send it to the pointer's "
                    "worker first"
                )
            self.key.append((torch.Tensor, value.dtype))
            number = value.item()
            self.numbers.append(int(number) if value.dtype == torch.bool else number)
            name = str(value.dtype).removeprefix("torch.")
            return {"scalar": [len(self.numbers) - 1, name]}
        if isinstance(value, torch.dtype):
            self.key.append(value)
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.memory_format):
            self.key.append(value)
            return {"memory_format": str(value).removeprefix("torch.")}
        if isinstance(value, complex):
            self.key.append(value)
            return {"complex": [value.real, value.imag]}
        if isinstance(value, torch.Generator):
            raise UsageError(
                "a generator stays here: what a worker draws follows torch.manual_seed"
            )
        raise UsageError(f"an argument of type {type(value).__name__} cannot be sent to a worker")


class TensorHere(UsageError):
    """An argument is a tensor of this process."""


_known: dict[tuple[Any, ...], Known] = {}


def known_call(
    operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any], kind: type
) -> tuple[Known, list[Any], list[Number]]:
    """The call of an operator, and the tensors and numbers that fill its slots.

    Args:
        operator: of ATen.
        arguments: by position.
        keywords: by name; device, layout and pin_memory mean the worker's own.
        kind: the class of tensors that are elsewhere; has `layout_there`.

    Raises:
        UnlistedOperator: it is not on the list.
        UsageError: an argument that cannot be sent, or a result that only values can tell.
        RuntimeError: PyTorch's own, of shapes and dtypes that do not fit.
    """
    quick = None if keywords else _quick_walk(operator, arguments, kind)
    if quick is not None:
        key, tensors, numbers = quick
        known = _known.get(key)
        if known is None:
            known, _ = _walk(operator, arguments, keywords, kind)
            _known[key] = known
        return known, tensors, numbers
    known, walked = _walk(operator, arguments, keywords, kind)
    return known, walked.tensors, walked.numbers


def _quick_walk(
    operator: OpOverload, arguments: Sequence[Any], kind: type
) -> tuple[tuple[Any, ...], list[Any], list[Number]] | None:
    """Kind, tensors and numbers of a call whose arguments are of the usual types, else None.

    What goes over the wire is not written for each call; and the operator is known by its id,
    since its hash is a call of Python.
    """
    key: list[Any] = [id(operator)]
    tensors: list[Any] = []
    numbers: list[Number] = []
    for value in arguments:
        of = type(value)
        if of is kind:
            key.append(value.layout_there)
            tensors.append(value)
        elif of is int or value is None:
            key.append(value)
        elif of is float:
            key.append(float)
            numbers.append(value)
        elif of is bool:
            key.append(_BOOLS[value])
        elif of is list and all(type(v) is int for v in value):
            key.append(tuple(value))
        else:
            return None
    return (tuple(key), tensors, numbers) if tensors else None


_BOOLS = ((bool, False), (bool, True))


def _walk(
    operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any], kind: type
) -> tuple[Known, Arguments]:
    """As `known_call`, for arguments of any type."""
    walked = Arguments(kind)
    wire = [walked.walk(a) for a in arguments]
    named = {}
    for name, value in keywords.items():
        if name not in _HERE_ONLY:
            walked.key.append(name)
            named[name] = walked.walk(value)
    if not walked.tensors:
        # What makes tensors of numbers alone may take its shape from them.
        walked.key += walked.numbers
    key = (operator, *walked.key)
    known = _known.get(key)
    if known is None:
        if len(_known) >= MOST_KNOWN:
            forget_all()
        known = _known[key] = _infer(operator, arguments, keywords, wire, named, walked)
    return known, walked


_HERE_ONLY = ("device", "layout", "pin_memory")

links_to_tell: list[Callable[[], None]] = []
"""Called when all known calls are forgotten and their numbers are given anew."""


def forget_all() -> None:
    """Starts over: memory does not grow with the number of different calls."""
    _known.clear()
    for tell in links_to_tell:
        tell()


def _infer(
    operator: OpOverload,
    arguments: Sequence[Any],
    keywords: dict[str, Any],
    wire: list[Any],
    named: dict[str, Any],
    walked: Arguments,
) -> Known:
    name = wire_name(operator)
    try:
        resolve(name)
    except UnlistedOperator:
        if torch.Tag.dynamic_output_shape in operator.tags:
            raise _values_wanted(name) from None
        raise
    log = logging.getLogger(FakeTensorMode.__module__)
    loud = log.disabled
    log.disabled = True  # what does not fit is told by the exception
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):

            def fake(value: Any) -> Any:
                return _fake(value.layout_there) if hasattr(value, "layout_there") else value

            result = operator(*tree_map(fake, list(arguments)), **tree_map(fake, keywords))
    except (DynamicOutputShapeException, DataDependentOutputException):
        raise _values_wanted(name) from None
    finally:
        log.disabled = loud
    results, shape = _results(operator, result)
    places = _places_of_written(operator, wire, named)
    returned = operator._schema.returns
    written = [r.alias_info is not None and r.alias_info.is_write for r in returned]
    # A backward kernel leaves out what its mask does not ask for; its fake may not.
    wanted = _output_mask(operator, arguments, keywords)
    fixed: list[Result] = []
    for position, one in enumerate(results):
        if len(returned) == len(results) and written[position]:
            place = places.pop(0)
            if layout_of(one) is not walked.tensors[place].layout_there:
                raise UsageError(
                    f"{name} would make {list(one.shape)} of a pointer to "
                    f"{list(walked.tensors[place].shape)}: the shape of a pointer is fixed"
                )
            fixed.append(place)
        elif wanted and not wanted[position]:
            fixed.append(None)
        else:
            fixed.append(layout_of(one) if isinstance(one, torch.Tensor) else None)
    views = any(r.alias_info is not None for r in returned)
    nbytes = 0 if views else sum(r.nbytes() for r in fixed if isinstance(r, Layout))
    return Known(
        len(_known),
        Signature(name, wire, named, nbytes),
        tuple(fixed),
        shape,
        is_random(operator),
        int(is_numbered(operator)),
    )


def _output_mask(
    operator: OpOverload, arguments: Sequence[Any], keywords: dict[str, Any]
) -> Sequence[bool]:
    """Which results a backward operator is asked for; empty if it is not one of those."""
    names = (a.name for a in operator._schema.arguments)
    given = dict(zip(names, arguments, strict=False)) | keywords
    mask: Sequence[bool] = given.get("output_mask", ())
    return mask


def _values_wanted(name: str) -> UsageError:
    return UsageError(
        f"the result of {name} depends on values that only the worker has: fetch them with "
        "get() first, or compute with a mask, as torch.where does"
    )


def _fake(there: Layout) -> torch.Tensor:
    """A fake tensor of that layout; only inside a FakeTensorMode."""
    if not there.offset:
        return torch.empty_strided(there.shape, there.stride, dtype=there.dtype)
    span = sum((n - 1) * s for n, s in zip(there.shape, there.stride, strict=True))
    base = torch.empty(there.offset + max(span, 0) + 1, dtype=there.dtype)
    return base.as_strided(there.shape, there.stride, there.offset)


def _results(operator: OpOverload, result: Any) -> tuple[list[Any], Any]:
    """Results in order, and the constructor of what holds them."""
    if isinstance(result, torch.Tensor):
        return [result], None
    if result is None:
        return [], lambda none: None
    if isinstance(result, list | tuple) and all(
        r is None or isinstance(r, torch.Tensor) for r in result
    ):
        return list(result), list if isinstance(result, list) else tuple
    raise UsageError(f"{operator} does not return tensors: fetch its arguments with get() first")


def _places_of_written(operator: OpOverload, wire: list[Any], named: dict[str, Any]) -> list[int]:
    """Positions, among the tensors, of the arguments that the operator changes and returns."""
    declared = operator._schema.arguments
    given = dict(zip((a.name for a in declared), wire, strict=False)) | named
    places = []
    for a in declared:
        if a.alias_info is None or not a.alias_info.is_write:
            continue
        argument = given.get(a.name)
        parts = argument if isinstance(argument, list) else [argument]
        if any(isinstance(part, dict) and "tensor" not in part for part in parts):
            raise UsageError(
                f"{operator} would write what a worker has into a tensor here: fetch it with get()"
            )
        if isinstance(argument, dict):
            places.append(argument["tensor"])
    return places
