"""Recording: a function is run on pointers to nowhere, and its calls become a program.

The tensors of the arguments are replaced by pointers whose link does not send its calls
but keeps them. So whatever works on pointers can be recorded: modules, losses, backward(),
optimisers. What is recorded are ATen operators without autograd's bookkeeping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from fedmpi.errors import UsageError
from fedmpi.tensors.assemble import Assembled, Recorded, assemble
from fedmpi.tensors.calls import Known
from fedmpi.tensors.layout import Layout
from fedmpi.tensors.link import Remote
from fedmpi.tensors.making import MakingThere
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.shared import SharedTensor


class Recording(NamedTuple):
    """What a function did.

    Attributes:
        assembled: its program.
        returned: what it returned, with an `Output` in place of each tensor.
        captured: constants that it sent: inputs after those that are given.
        masked: SharedTensors of modules that got a mask in it and are not changed by it.
    """

    assembled: Assembled
    returned: Any
    captured: list[PointerTensor]
    masked: list[SharedTensor]


@dataclass(frozen=True)
class Output:
    """In place of a tensor that the function returned.

    Attributes:
        at: position among the outputs.
        shared: makes a SharedTensor of the pointer to its shares.
    """

    at: int
    shared: Callable[[PointerTensor], SharedTensor] | None = None


class Recorder:
    """Stands in for a link while a function is recorded."""

    rank = "of a plan"

    def __init__(self) -> None:
        self.made = 0
        self.calls: list[Recorded] = []
        self.captured: dict[int, PointerTensor] = {}

    def capture(self, constant: PointerTensor) -> PointerTensor:
        """A stand-in for a constant that the function sent where the program is to run: it
        becomes one of the program's inputs.
        """
        pointer = PointerTensor(self.make(), constant.layout_there)
        self.captured[pointer.remote.key] = constant
        return pointer

    def release(self, key: int) -> None:
        """Nothing to delete: nothing was made."""

    def make(self) -> Remote:
        self.made += 1
        return Remote(self, self.made)  # type: ignore[arg-type]

    def call(
        self,
        known: Known,
        tensors: list[int],
        numbers: list[int | float],
        results: list[int],
        seed: int,
    ) -> None:
        self.calls.append(Recorded(known, tensors, numbers, results))

    def tell(self, *_: Any) -> Any:
        raise UsageError(
            "a plan is being recorded, and its values are not known yet: .item(), get(), "
            "`if t > 0` and printing values have no place in it; torch.where chooses by value"
        )

    def ask(self, *_: Any) -> Any:
        return self.tell(*_)

    def peer(self, link: Any) -> Any:
        raise UsageError("a plan runs on one worker: what moves between workers is a protocol")


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of an argument: of modules, optimisers, lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, torch.optim.Optimizer):
        for group in value.param_groups:
            yield from group["params"]
        for state in value.state.values():
            yield from leaves(state)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)


def is_elsewhere(tensor: torch.Tensor) -> bool:
    """Whether a leaf becomes an input: local 0-dim tensors are numbers of the program's own."""
    return isinstance(tensor, PointerTensor | SharedTensor) or tensor.dim() > 0


def record(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    inputs: Sequence[torch.Tensor],
    layouts: Sequence[Layout],
) -> Recording:
    """Runs a function on pointers to nowhere.

    Args:
        function: of tensors, modules, optimisers, and containers of them.
        arguments: as it will be called; they are not changed.
        inputs: the tensors among the arguments that become inputs, each once.
        layouts: that they are to have; their own, or those of another batch size.

    Raises:
        UsageError: the function wants to know a value, or leaves new tensors behind in an
            argument (an optimiser's first step does).
    """
    recorder = Recorder()
    stand_ins: dict[int, Any] = {}
    for tensor, there in zip(inputs, layouts, strict=True):
        stand_ins[id(tensor)] = stand_in(recorder, tensor, there)
    shared = {id(t): t for t in leaves(arguments) if isinstance(t, SharedTensor)}
    stand_ins |= {key: t.standing_in(stand_ins) for key, t in shared.items()}
    copied = copy.deepcopy(tuple(arguments), stand_ins)
    # The seeds that pointers draw at random operators stay out of the program.
    forked = torch.random.fork_rng(devices=[])
    with forked, _as_if_compiling(copied), MakingThere(recorder), recording(recorder):
        returned = function(*copied)
    known = {k + 1: there for k, there in enumerate(layouts)}
    for tensor in leaves(copied):
        own = tensor.secret.share if isinstance(tensor, SharedTensor) else tensor
        if isinstance(own, PointerTensor) and own.remote.key not in known:
            raise NewState
    _refuse_counting(arguments, copied)
    outputs: list[PointerTensor] = []
    tree = take_outputs(returned, outputs)
    known |= {key: constant.layout_there for key, constant in recorder.captured.items()}
    masked = [
        shared[key]
        for key in {id(t) for a in arguments if isinstance(a, nn.Module) for t in leaves(a)}
        if key in shared and stand_ins[key].secret.gained_mask
    ]
    assembled = assemble(recorder.calls, known, [p.remote.key for p in outputs])
    return Recording(assembled, tree, list(recorder.captured.values()), masked)


_recorders: list[Recorder] = []


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Makes a recorder the one that constants are told to."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.pop()


def constant(pointer: PointerTensor) -> PointerTensor:
    """A constant that was sent just now; while a program is recorded, its stand-in there."""
    return _recorders[-1].capture(pointer) if _recorders else pointer


@contextmanager
def _as_if_compiling(arguments: Sequence[Any]) -> Iterator[None]:
    """Lets capturable optimisers, which count on the worker, do so on a CPU: PyTorch allows it
    to compilers alone.
    """
    counting = any(
        isinstance(a, torch.optim.Optimizer) and a.defaults.get("capturable") is not None
        for a in arguments
    )
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = before or counting
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _refuse_counting(before: Sequence[Any], after: Sequence[Any]) -> None:
    """A number that the function counted up here would stand still in the program."""
    pairs = zip(leaves(before), leaves(after), strict=True)
    if any(not is_elsewhere(b) and not torch.equal(b, a) for b, a in pairs):
        raise UsageError(
            "a plan changes tensors on its worker, but the function changed a number that is here: "
            "send it to the worker as a 0-dim tensor"
        )


class NewState(Exception):
    """The function put new tensors into an argument: to be run as it is, this time."""


def stand_in(recorder: Recorder, tensor: torch.Tensor, there: Layout) -> torch.Tensor:
    """A pointer to nowhere in place of a tensor."""
    pointer = PointerTensor(recorder.make(), there)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(pointer, tensor.requires_grad)
    return pointer.requires_grad_(tensor.requires_grad)


def take_outputs(value: Any, outputs: list[PointerTensor]) -> Any:
    """The returned value with an `Output` for each tensor, which is added to the list."""
    if isinstance(value, PointerTensor):
        outputs.append(value)
        return Output(len(outputs) - 1)
    if isinstance(value, SharedTensor):
        outputs.append(value.secret.share)
        return Output(len(outputs) - 1, value.made_of())
    if isinstance(value, list | tuple):
        return type(value)(take_outputs(v, outputs) for v in value)
    if isinstance(value, dict):
        return {key: take_outputs(v, outputs) for key, v in value.items()}
    if isinstance(value, torch.Tensor | nn.Module):
        raise UsageError(
            f"a plan returns tensors that it computed, not a {type(value).__name__} from outside"
        )
    return value
