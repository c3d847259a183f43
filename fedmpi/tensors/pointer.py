"""PointerTensor: ordinary PyTorch code here, the values on a worker.

PyTorch breaks a program into ATen operators. On a pointer each of them becomes a call on
the worker that holds the values (`__torch_dispatch__`); the owner works out the shape of
the result and goes on. Autograd, modules and optimisers are above that and need to know nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from fedmpi.errors import UsageError
from fedmpi.tensors.calls import TensorHere, known_call
from fedmpi.tensors.layout import Layout, layout
from fedmpi.tensors.link import Link, Remote
from fedmpi.workers.operate import Fetch, Fetched, Give, MakePrivate, Put, Take
from fedmpi.workers.operators import LISTED

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
        if torch.is_inference_mode_enabled():
            # An inference tensor cannot be the view of a pointer from before.
            with torch.inference_mode(False):
                return cls.__new__(cls, remote, there)
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
        special = _special_of.get(id(func), _unknown)
        if special is _unknown:
            special = _special_of[id(func)] = _special(func)
        if special is None:
            return call(func, args, kwargs or {})
        return special(*args, **(kwargs or {}))

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
        return self.give(worker.link, keep=False)

    def copy(self, worker: HasLink) -> PointerTensor:
        """Copies the object to another worker, straight."""
        return self.give(worker.link, keep=True)

    def give(self, link: Link, keep: bool) -> PointerTensor:
        """Moves or copies the object over another link."""
        target = self.link.peer(link)
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


def _same(pointer: PointerTensor) -> PointerTensor:
    """The same object on the worker; needs no message."""
    return PointerTensor(pointer.remote, pointer.layout_there)


def _item(pointer: PointerTensor) -> Any:
    return pointer.get().item()


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.all(torch.eq(a, b)))


def _allclose(*args: Any, **kwargs: Any) -> bool:
    return bool(torch.all(torch.isclose(*args, **kwargs)))


def _view_in_place(
    in_place: OpOverload, view: OpOverload, pointer: PointerTensor, *args: Any
) -> PointerTensor:
    """What changes a tensor's shape in place: the pointer stands for a view from here on."""
    viewed = call(view, (pointer, *args), {})
    with torch._C._DisableTorchDispatch():  # shape and strides are known here too
        in_place(pointer, *args)
    pointer.remote, pointer.layout_there = viewed.remote, viewed.layout_there
    return pointer


_VIEWS_IN_PLACE = {
    aten.as_strided_.default: aten.as_strided.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}

_SPECIAL: dict[OpOverload, Callable[..., Any]] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.detach_.default: lambda pointer: pointer,
    aten.lift_fresh.default: _same,
    aten._local_scalar_dense.default: _item,
    aten.allclose.default: _allclose,
    aten.equal.default: _equal,
    # A lazy conjugate or negative is a mark on a tensor, which a pointer does not carry.
    aten._conj.default: aten._conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}
_SPECIAL.update(
    (func, partial(_view_in_place, func, view)) for func, view in _VIEWS_IN_PLACE.items()
)


_unknown: Any = object()
_special_of: dict[int, Any] = {}
"""By id, since an operator's hash is a call of Python."""


def _special(func: OpOverload) -> Callable[..., Any] | None:
    """What stands in for an operator that is not called on the worker as it is."""
    if func in _SPECIAL:
        return _SPECIAL[func]
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if func.overloadpacket.__name__ not in LISTED and (
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)
    ):
        # Autograd breaks these into others; in inference mode nobody has done it yet.
        return func.decompose
    return None


def call(func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """Calls an operator on the worker that holds the pointers among its arguments."""
    try:
        known, pointers, numbers = known_call(func, args, kwargs, PointerTensor)
    except TensorHere:
        constant = _with_constants(func, args)
        known, pointers, numbers = known_call(func, constant, kwargs, PointerTensor)
    link = pointers[0].remote.link
    for pointer in pointers:
        if pointer.remote.link is not link:
            raise UsageError(
                f"{func}: {pointers[0]!r} and {pointer!r} are on two workers: "
                "move one of them to the other's worker"
            )
    return issue(link, known, pointers, numbers)


_POSITIONS = {
    aten._embedding_bag.default: "offsets",
    aten._embedding_bag_forward_only.default: "offsets",
    aten.index.Tensor: "indices",
    aten.index_put.default: "indices",
    aten.index_put_.default: "indices",
    aten._index_put_impl_.default: "indices",
}
"""Arguments that PyTorch itself makes tensors of, and here, as in `x[[0, 2]]`."""


def _with_constants(func: OpOverload, args: Sequence[Any]) -> Sequence[Any]:
    """The arguments, with pointers to copies of the tensors here that PyTorch made.

    In a backward pass these are all tensors here, since the forward pass let in none of the
    program's own.
    """
    link = next((a.remote.link for a in tree_leaves(args) if isinstance(a, PointerTensor)), None)
    if not isinstance(link, Link):  # a program is recorded, and has no values
        return args
    backward = torch._C._current_graph_task_id() != -1

    def sent(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, PointerTensor):
            return value
        if not backward and value.dtype == torch.bool:  # a mask: its count would be the shape
            return value
        remote = link.make()
        link.tell(Put(remote.key, [], "", False), [value.detach().clone()])
        return point(remote, value)

    return [
        tree_map(sent, a)
        if declared.name == _POSITIONS.get(func)
        or (backward and not (declared.alias_info and declared.alias_info.is_write))
        else a
        for a, declared in zip(args, func._schema.arguments, strict=False)
    ]


def issue(link: Link, known: Any, pointers: list[PointerTensor], numbers: list[Any]) -> Any:
    """Queues a known call and returns pointers to its results."""
    made: list[Any] = []
    keys: list[int] = []
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
