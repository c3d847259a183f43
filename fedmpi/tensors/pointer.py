"""PointerTensor: ordinary PyTorch code here, the values on a worker.

PyTorch breaks a program into ATen operators. On a pointer each of them becomes a call on
the worker that holds the values (`__torch_dispatch__`); the owner works out the shape of
the result and goes on. Autograd, modules and optimisers are above that and need to know nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch._ops import OpOverload

from fedmpi.errors import UsageError
from fedmpi.tensors.calls import known_call
from fedmpi.tensors.layout import Layout, layout
from fedmpi.tensors.link import Link, Remote
from fedmpi.workers.operate import Fetch, Fetched, Give, MakePrivate, Take

aten = torch.ops.aten


class HasLink(Protocol):
    """A worker's handle."""

    link: Link


class PointerTensor(torch.Tensor):
    """A tensor whose values are on a worker.

    Attributes:
        remote: the object there.
        layout_there: its shape, strides and dtype.
    """

    remote: Remote
    layout_there: Layout

    # Nothing to change above ATen: PyTorch's own Python need not ask.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, remote: Remote, there: Layout) -> PointerTensor:
        pointer: PointerTensor = torch.Tensor._make_wrapper_subclass(
            cls, there.shape, there.stride, there.offset, dtype=there.dtype
        )
        pointer.remote = remote
        pointer.layout_there = there
        return pointer

    def __init__(self, remote: Remote, there: Layout) -> None:
        pass

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _SAME:
            [pointer] = args
            return PointerTensor(pointer.remote, pointer.layout_there)
        if func is aten._local_scalar_dense.default:
            return args[0].get().item()
        return call(func, args, kwargs or {})

    def get(self) -> torch.Tensor:
        """The values, here; waits for the worker.

        Raises:
            RemoteError: the first failure on the worker since the last wait, or it holds
                the values as private.
        """
        _, [tensor] = self.link.ask(Fetch(self.remote.key), Fetched)
        return self.as_fetched(tensor)

    def as_fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values that came, as a leaf that requires grad if this is one."""
        return tensor.requires_grad_(self.requires_grad and self.is_leaf)

    @property
    def link(self) -> Link:
        """The way to the worker."""
        return self.remote.link

    @property
    def rank(self) -> int:
        """Of the worker."""
        return self.remote.link.rank

    def move(self, worker: HasLink) -> PointerTensor:
        """Moves the object to another worker, straight; this pointer stands for nothing then."""
        return self._give(worker, keep=False)

    def copy(self, worker: HasLink) -> PointerTensor:
        """Copies the object to another worker, straight."""
        return self._give(worker, keep=True)

    def _give(self, worker: HasLink, keep: bool) -> PointerTensor:
        target = worker.link
        if target is self.link:
            raise UsageError(f"{self!r} is on that worker already: use clone()")
        remote = target.make()
        self.link.tell(Give(self.remote.key, target.rank, keep))
        target.tell(Take(remote.key, self.rank))
        moved = point(remote, self)
        moved.requires_grad_(self.requires_grad and self.is_leaf)
        return moved

    def make_private(self) -> PointerTensor:
        """Has the worker keep the values, and all that is computed from them, to itself."""
        self.link.tell(MakePrivate(self.remote.key))
        return self

    def numpy(self, *, force: bool = False) -> Any:
        """The values here as an array; waits for the worker."""
        return self.get().numpy(force=force)

    def tolist(self) -> Any:
        """The values here as lists; waits for the worker."""
        return self.get().tolist()

    def __repr__(  # type: ignore[override]
        self, *, tensor_contents: Any = None
    ) -> str:
        """Never fetches."""
        dtype = str(self.dtype).removeprefix("torch.")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"PointerTensor(rank {self.rank}, id {self.remote.key}, "
            f"{list(self.shape)}, {dtype}{grad})"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copy = self.clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad)
                if is_parameter
                else copy.requires_grad_(self.requires_grad)
            )
        found: torch.Tensor = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(f"{self!r} cannot be saved: fetch the values with get() first")


_SAME = (aten.detach.default, aten.alias.default, aten.lift_fresh.default)
"""Operators that need no message: the result is the same object on the worker."""


def call(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """Calls an operator on the worker that holds the pointers among its arguments."""
    known, walked = known_call(func, args, kwargs, PointerTensor)
    pointers = walked.tensors
    link = pointers[0].remote.link
    for pointer in pointers:
        if pointer.remote.link is not link:
            raise UsageError(
                f"{func}: {pointers[0]!r} and {pointer!r} are on two workers: "
                "move one of them to the other's worker"
            )
    return issue(link, known, pointers, walked.numbers)


def issue(link: Link, known: Any, pointers: list[PointerTensor], numbers: list[Any]) -> Any:
    """Queues a known call and returns pointers to its results."""
    made: list[Any] = []
    keys = []
    for result in known.results:
        if type(result) is Layout:
            remote = link.make()
            made.append(PointerTensor(remote, result))
            keys.append(remote.key)
        else:
            made.append(None if result is None else pointers[result])
            keys.append(0)
    # A random call's seed comes from the program's own generator: torch.manual_seed rules it.
    seed = int(torch.randint(2**62, ())) if known.random else 0
    link.call(known, [p.remote.key for p in pointers], numbers, keys, seed)
    return made[0] if known.shape is None else known.shape(made)


def point(remote: Remote, tensor: torch.Tensor) -> PointerTensor:
    """A pointer to what a worker stores for a tensor that is here: contiguous there."""
    contiguous = torch.empty(tensor.shape, device="meta").stride()
    there = layout(tuple(tensor.shape), tuple(contiguous), 0, tensor.dtype)
    return PointerTensor(remote, there)
