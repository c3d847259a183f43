"""What an operator is called with: a signature that is sent once, and calls that fill it in.

A signature is an operator's name and its arguments, with slots in place of tensors and
of float numbers. A call names the signature by number and fills the slots: a training
loop makes some fifty signatures, and then sends a few integers per operator.

On the wire an argument is what msgpack knows (numbers, strings, None, lists), or a map
of one entry: {"tensor": slot}, {"number": slot}, {"scalar": [slot, dtype]},
{"dtype": name}, {"memory_format": name}, {"complex": [real, imaginary]}; in a program also
{"size": [a, c]}, a number that follows the batch size, and {"given": k}, a number of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import torch

from fedmpi.comm.frame import DTYPES, ProtocolError
from fedmpi.workers.operators import (
    drawing,
    is_numbered,
    is_random,
    kernel,
    leaves_memory_as_found,
    resolve,
)

Number = int | float
Fill = Callable[[Sequence[torch.Tensor], Sequence[Number]], Any]
"""The value of an argument, given the tensors and the numbers of a call."""

MEMORY_FORMATS = {
    str(known).removeprefix("torch."): known
    for known in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}
WRITES_UNDECLARED = {"native_batch_norm": ("running_mean", "running_var")}
"""Arguments that an operator changes in place without saying so."""
DEEPEST = 4
"""Lists in lists of an argument; ATen knows two levels."""


class Signature(msgspec.Struct, frozen=True, array_like=True, tag="operator"):
    """An operator and the arguments that its calls have in common.

    Attributes:
        operator: its name on the wire, such as `add.Tensor`.
        arguments: by position.
        keywords: by name.
        nbytes: memory that the results take, as the owner reckons: a call beyond the limit is
            refused before it runs. The store counts what really came, and keeps none beyond.
    """

    operator: str
    arguments: list[Any]
    keywords: dict[str, Any]
    nbytes: int


class Callee:
    """A signature, ready to be called.

    Attributes:
        signature: as it was sent.
        name: of the operator, for messages.
        nbytes: as the signature says.
        operator: that it names.
        kernel: what computes it.
        random: whether a call needs a seed.
        numbered: whether a call has a number in place of a seed.
        numbers: how many numbers a call takes.
        written: tensor slots whose tensors are changed in place.
        unfilled: whether the result has to be filled with zeros, or it shows old memory.

    Raises:
        UnlistedOperator: the operator is not on the list.
        ProtocolError: an argument that is none of the above.
    """

    def __init__(self, signature: Signature) -> None:
        signature = _checked(signature)
        self.signature = signature
        self.name = signature.operator
        self.nbytes = signature.nbytes
        self.operator = resolve(signature.operator)
        self.kernel = kernel(self.operator)
        self.random = is_random(self.operator)
        self.numbered = is_numbered(self.operator)
        self.numbers = int(self.numbered)
        declared = self.operator._schema.arguments
        given = dict(zip((a.name for a in declared), signature.arguments, strict=False))
        given |= signature.keywords
        writes = [a.name for a in declared if a.alias_info and a.alias_info.is_write]
        writes += WRITES_UNDECLARED.get(signature.operator, ())
        self.written = tensor_slots([given[name] for name in writes if name in given])
        self.unfilled = leaves_memory_as_found(self.operator)
        # Most arguments are constants or one tensor each: only the slots are filled per call.
        self._positional = [fill(a) if _has_slot(a) else None for a in signature.arguments]
        self._constant = [
            a if f else fill(a)((), ())
            for a, f in zip(signature.arguments, self._positional, strict=True)
        ]
        self._slots = [(k, f) for k, f in enumerate(self._positional) if f is not None]
        self._named = {name: fill(a) for name, a in signature.keywords.items()}

    def __call__(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[Number], seed: int
    ) -> Any:
        """Runs the operator, with gradients off; `seed` is that of a random one."""
        arguments = self._constant.copy()
        for k, value in self._slots:
            arguments[k] = value(tensors, numbers)
        call = self.kernel
        if self.random:
            call = drawing(self.operator, seed)
        elif self.numbered:
            call = partial(call, number=seed)
        if self._named:
            result = call(*arguments, **{n: f(tensors, numbers) for n, f in self._named.items()})
        else:
            result = call(*arguments)
        return result.zero_() if self.unfilled else result


def _checked(signature: Signature) -> Signature:
    """With checked indices: autograd trusts those of the forward pass, but a message may lie."""
    if signature.operator != "_index_put_impl_":
        return signature
    keywords = {name: a for name, a in signature.keywords.items() if name != "unsafe"}
    return msgspec.structs.replace(signature, arguments=signature.arguments[:4], keywords=keywords)


def _has_slot(argument: Any) -> bool:
    if isinstance(argument, list):
        return any(_has_slot(a) for a in argument)
    return isinstance(argument, dict) and not argument.keys().isdisjoint(_SLOTS)


def tensor_slots(argument: Any) -> list[int]:
    """Tensor slots of an argument, in order."""
    if isinstance(argument, list):
        return [slot for a in argument for slot in tensor_slots(a)]
    return [argument["tensor"]] if isinstance(argument, dict) and "tensor" in argument else []


_SLOTS = ("tensor", "number", "scalar", "size", "given")


def fill(argument: Any, depth: int = 0) -> Fill:
    """How to make the value of an argument."""
    if isinstance(argument, list):
        if depth == DEEPEST:
            raise ProtocolError(f"an argument of lists more than {DEEPEST} deep")
        values = [fill(a, depth + 1) for a in argument]
        return lambda tensors, numbers: [value(tensors, numbers) for value in values]
    if not isinstance(argument, dict):
        return lambda tensors, numbers: argument
    if len(argument) != 1:
        raise ProtocolError(f"an argument {argument!r:.80}")
    [(kind, value)] = argument.items()
    if kind in ("size", "given"):
        return _refuse_in_plans_only
    if kind in _SLOTS:
        slot = value[0] if kind == "scalar" and isinstance(value, list) and value else value
        if type(slot) is not int or slot < 0:
            raise ProtocolError(f"an argument {argument!r:.80}: slots count from 0")
    try:
        if kind == "tensor":
            return lambda tensors, numbers: tensors[value]
        if kind == "number":
            return lambda tensors, numbers: numbers[value]
        if kind == "scalar":
            dtype = DTYPES[value[1]]
            return lambda tensors, numbers: torch.scalar_tensor(numbers[slot], dtype=dtype)
        known: dict[str, dict[str, Any]] = {"dtype": DTYPES, "memory_format": MEMORY_FORMATS}
        constant: Any = complex(*value) if kind == "complex" else known[kind][value]
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise ProtocolError(f"an argument {argument!r:.80}: {error!r:.80}") from None
    return lambda tensors, numbers: constant


def _refuse_in_plans_only(tensors: Sequence[torch.Tensor], numbers: Sequence[Number]) -> Any:
    raise ProtocolError("a batch size or a number of the call outside a plan")
