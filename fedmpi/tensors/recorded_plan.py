"""A recorded plan: one program with its inputs and results; runs anywhere, fits into a file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from fedmpi.comm.frame import DTYPES, UNREADABLE
from fedmpi.data.files import atomic, reason
from fedmpi.decoding import from_msgpack
from fedmpi.errors import DataError, FedMPIError, UsageError
from fedmpi.tensors.batch_size import Growing, Whole
from fedmpi.tensors.code import code_of
from fedmpi.tensors.layout import Layout, layout_of
from fedmpi.tensors.link import Link
from fedmpi.tensors.pointer import HasLink, PointerTensor
from fedmpi.workers.operators import is_numbered, is_random, resolve
from fedmpi.workers.program import Program, Replay, written_inputs

FORMAT, VERSION = "fedmpi plan", 1

_numbers = itertools.count(1)


class RecordedPlan:
    """A function of tensors, recorded for inputs of one kind.

    Args:
        name: of the function.
        program: what a worker runs.
        inputs: layouts, in order.
        results: of each output, its layout, or the number of the input that it is.
        constants: its last inputs, which it brings along.

    Attributes:
        number: under which workers learn it.
        signature: the program.
        states: numbers of the inputs that a run changes in place.
        numbers: how many numbers a run takes in place of a seed.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        inputs: Sequence[Layout | Growing],
        results: Sequence[Layout | Growing | int],
        constants: Sequence[PointerTensor] = (),
    ) -> None:
        self.name = name
        self.signature = program
        self.inputs = tuple(inputs[: len(inputs) - len(constants)])
        self.constants = tuple(constants)
        self.results = tuple(results)
        self.states = tuple(written_inputs(program))
        # Known operators count from 0 up, plans from -1 down.
        self.number = -next(_numbers)
        operators = [resolve(s.operator) for s in program.signatures]
        self.numbers = len(program.steps) if any(map(is_numbered, operators)) else 0
        self._random = any(map(is_random, operators))
        self._here: Replay | None = None

    def __repr__(self) -> str:
        return (
            f"RecordedPlan({self.name}, {len(self.signature.steps)} operators, "
            f"{len(self.inputs)} inputs, {len(self.states)} of them states)"
        )

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Runs it where its inputs are; returns the outputs, as pointers if on a worker.

        Raises:
            UsageError: inputs of another number, shape or dtype, or in several places.
        """
        if len(inputs) != len(self.inputs):
            raise UsageError(f"{self!r} was given {len(inputs)} inputs")
        for k, (given, wanted) in enumerate(zip(inputs, self.inputs, strict=True)):
            if layout_of(given) is not wanted.at(self._size(inputs)):
                raise UsageError(
                    f"input {k} of plan {self.name} is {_words(wanted)}, not "
                    f"{_words(layout_of(given))}"
                )
        return self.run(inputs, place_of(inputs))

    def run(self, inputs: Sequence[torch.Tensor], link: Link | None) -> list[torch.Tensor]:
        """As a call, for inputs that are known to fit; `link` None: here."""
        seed = int(torch.randint(2**62, ())) if self._random else 0
        if link is None:
            self._here = self._here or Replay(self.signature)
            with torch.no_grad():
                return self._here([t.detach() for t in inputs], (), seed)
        n = self._size(inputs)
        made: list[torch.Tensor] = []
        keys = []
        for result in self.results:
            if not isinstance(result, int):
                remote = link.make()
                made.append(PointerTensor(remote, result.at(n)))
                keys.append(remote.key)
            else:
                made.append(inputs[result])
                keys.append(0)
        given = (*inputs, *self.constants)
        pointers = [t.remote.key for t in given if isinstance(t, PointerTensor)]
        link.call(self, pointers, [], keys, seed)
        return made

    def _size(self, inputs: Sequence[torch.Tensor]) -> int:
        """The batch size, which layouts may depend on."""
        batch = self.signature.batch
        return inputs[batch].shape[0] if batch != -1 and inputs[batch].dim() else 0

    def send(self, worker: HasLink) -> None:
        """Has a worker learn it now, not at the first run."""
        worker.link.learn(self)

    def code(self) -> str:
        """The program as Python that a person can read."""
        return code_of(self.signature, self.name)

    def save(self, path: str | Path) -> None:
        """Writes it to a file: msgpack, no code.

        Raises:
            UsageError: the plan brings constants along.
            DataError: the file cannot be written.
        """
        if self.constants:
            raise UsageError(
                f"plan {self.name} holds {len(self.constants)} tensors from outside, which are not "
                "saved: make them its arguments"
            )
        content = _File(
            FORMAT,
            VERSION,
            self.name,
            self.signature,
            [_Written.of(one) for one in self.inputs],
            [one if isinstance(one, int) else _Written.of(one) for one in self.results],
        )
        with atomic(path) as temporary:
            temporary.write_bytes(msgspec.msgpack.encode(content))

    @classmethod
    def load(cls, path: str | Path) -> RecordedPlan:
        """Reads a plan that was saved.

        Raises:
            DataError: the file is missing, damaged, of another kind or version, or names an
                operator that is not on the list.
        """
        try:
            content = from_msgpack(Path(path).read_bytes(), _File)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        except UNREADABLE as error:
            raise DataError(f"{path} is not a plan of FedMPI: {reason(error)}") from None
        if (content.format, content.version) != (FORMAT, VERSION):
            raise DataError(
                f"{path} is {content.format!r} version {content.version}, expected {FORMAT!r} "
                f"version {VERSION}"
            )
        if not content.name.isprintable():
            raise DataError(f"{path} holds a plan of the name {content.name!r:.80}")
        try:
            Replay(content.program)
            inputs = [one.layout() for one in content.inputs]
            results = [one if isinstance(one, int) else one.layout() for one in content.results]
        except (FedMPIError, KeyError) as error:
            raise DataError(f"{path} holds a plan that cannot be run: {error}") from None
        if len(inputs) != content.program.inputs or len(results) != len(content.program.outputs):
            raise DataError(f"{path} holds a plan whose inputs or results are not those it names")
        return cls(content.name, content.program, inputs, results)


class _Written(msgspec.Struct, frozen=True, array_like=True):
    """A layout in a file."""

    shape: list[Whole]
    stride: list[Whole]
    offset: Whole
    dtype: str

    @classmethod
    def of(cls, one: Layout | Growing) -> _Written:
        dtype = str(one.dtype).removeprefix("torch.")
        return cls(list(one.shape), list(one.stride), one.offset, dtype)

    def layout(self) -> Layout | Growing:
        found = Growing(tuple(self.shape), tuple(self.stride), self.offset, DTYPES[self.dtype])
        numbers = (*found.shape, *found.stride, found.offset)
        return found.at(0) if all(isinstance(n, int) for n in numbers) else found


class _File(msgspec.Struct, frozen=True):
    """A plan as it lies in a file."""

    format: str
    version: int
    name: str
    program: Program
    inputs: list[_Written]
    results: list[int | _Written]


def place_of(inputs: Sequence[torch.Tensor]) -> Link | None:
    """Where all inputs are; None: here.

    Raises:
        UsageError: they are in several places.
    """
    pointers = [t for t in inputs if isinstance(t, PointerTensor)]
    if not pointers:
        return None
    link = pointers[0].remote.link
    for tensor in inputs:
        if not isinstance(tensor, PointerTensor):
            raise UsageError(
                f"a plan runs on one worker, but one of its tensors {list(tensor.shape)} is here: "
                f"send it to rank {link.rank} first"
            )
        if tensor.remote.link is not link:
            raise UsageError(
                f"a plan runs on one worker, but {pointers[0]!r} and {tensor!r} are on two: "
                "move one of them"
            )
    return link


def _words(there: Layout | Growing) -> str:
    dtype = str(there.dtype).removeprefix("torch.")
    shape = [n if isinstance(n, int) else "n" for n in there.shape]
    return f"{dtype} [{', '.join(map(str, shape))}] with strides {list(there.stride)}"
