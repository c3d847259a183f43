"""MultiPointer: one tensor on several workers, replicated or split, and one line of code for all.

It is not a tensor: it has no shape of its own. PyTorch hands every function that meets one
to `__torch_function__`, which calls it once for each worker, with that worker's parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fedmpi.errors import RemoteError, UsageError
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.remote_worker import RemoteWorker, start_sending
from fedmpi.workers.operate import Fetch, Fetched

_ONE_VALUE = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
"""What asks a tensor for its values: here it would have to choose a worker."""


def _on_parts(name: str) -> Callable[..., Any]:
    """The method of a tensor, for each worker."""
    function = getattr(torch.Tensor, name)

    def method(self: MultiPointer, *args: Any) -> Any:
        return for_each_worker(function, (self, *args), {})

    return method


def _operator(name: str) -> tuple[Callable[..., Any], ...]:
    """`a + b`, `b + a` and `a += b` of one operator."""
    return _on_parts(f"__{name}__"), _on_parts(f"__r{name}__"), _on_parts(f"__i{name}__")


def _refused(name: str) -> Callable[..., Any]:
    def method(self: MultiPointer, *args: Any) -> Any:
        raise UsageError(f"{self!r} has one value for each worker: get() lists them, not {name}")

    return method


class MultiPointer:
    """One tensor on several workers.

    Operators, functions of `torch` and methods of tensors run on all of these workers: a
    MultiPointer among the arguments contributes the part on the same worker, numbers and
    tensors of a single number that are here go to all. What is not a tensor (`dim()`, `shape`)
    has to be the same on all workers.

    Args:
        parts: pointers, each on another worker.

    Attributes:
        parts: the pointers, in the order of the workers.

    Raises:
        UsageError: no parts, two on one worker, or parts that are no pointers.
    """

    __slots__ = ("parts",)

    parts: tuple[PointerTensor, ...]

    def __init__(self, parts: Sequence[PointerTensor]) -> None:
        if not parts:
            raise UsageError("a MultiPointer needs at least one part")
        for part in parts:
            if not isinstance(part, PointerTensor):
                raise UsageError(f"a part of type {type(part).__name__}: expected a pointer")
        links = [part.link for part in parts]
        for k, link in enumerate(links):
            if link in links[:k]:
                first = parts[links.index(link)]
                raise UsageError(f"{first!r} and {parts[k]!r} are two parts on one worker")
            if link.crew is not links[0].crew:
                raise UsageError(f"{parts[0]!r} and {parts[k]!r} belong to two jobs")
        object.__setattr__(self, "parts", tuple(parts))

    @classmethod
    def replicate(
        cls,
        tensor: torch.Tensor,
        workers: Sequence[RemoteWorker],
        *,
        tags: Sequence[str] = (),
        private: bool = False,
    ) -> MultiPointer:
        """Sends the same tensor to each worker; see `RemoteWorker.send`."""
        return cls._send([tensor] * len(workers), tensor, workers, tags, private)

    @classmethod
    def split(
        cls,
        tensor: torch.Tensor,
        workers: Sequence[RemoteWorker],
        *,
        tags: Sequence[str] = (),
        private: bool = False,
    ) -> MultiPointer:
        """Sends each worker its rows of a tensor, divided as `torch.tensor_split` does."""
        if not tensor.dim():
            raise UsageError("a tensor of no dimensions has no rows to split")
        rows = tensor.detach().tensor_split(len(workers)) if workers else ()
        return cls._send(rows, tensor, workers, tags, private)

    @classmethod
    def _send(
        cls,
        values: Sequence[torch.Tensor],
        whole: torch.Tensor,
        workers: Sequence[RemoteWorker],
        tags: Sequence[str],
        private: bool,
    ) -> MultiPointer:
        if not workers:
            raise UsageError("a MultiPointer needs at least one worker")
        if len(set(workers)) < len(workers):
            raise UsageError(f"{list(workers)}: a worker is named twice")
        parts = [
            start_sending(worker.link, value, tags, "", private)
            for worker, value in zip(workers, values, strict=True)
        ]
        workers[0].link.crew.endpoint.flush()  # all are under way before any is waited for
        for part in parts:
            part.requires_grad_(whole.requires_grad)
        return cls(parts)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return for_each_worker(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """A method or an attribute of tensors, of each part."""
        if name.startswith("__") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"a MultiPointer has no attribute {name!r}")
        if name in _ONE_VALUE:
            return partial(_refused(name), self)
        if callable(method := getattr(torch.Tensor, name)):
            return partial(self._call, method)
        return _joined(name, [getattr(part, name) for part in self.parts])

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return for_each_worker(method, (self, *args), kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """`requires_grad`, `grad` or `data` of each part."""
        if name == "parts" or not hasattr(torch.Tensor, name):
            raise AttributeError(f"attribute {name!r} of a MultiPointer cannot be set")
        for_each_worker(lambda part, its: setattr(part, name, its), (self, value), {})

    def get(self) -> list[torch.Tensor]:
        """The values of all parts, in the order of the workers; all are asked at once.

        Raises:
            RemoteError: the failure of the first worker, in this order, that failed.
        """
        for part in self.parts:
            part.link.tell(Fetch(part.remote.key))
        values, failures = [], []
        for part in self.parts:
            # Every reply is taken in, so that none is left to answer a later question.
            try:
                _, [tensor] = part.link.hear(Fetched)
                values.append(part.as_fetched(tensor))
            except RemoteError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return values

    def get_sum(self) -> torch.Tensor:
        """The sum of the workers' values, here, added in the order of the ranks."""
        shapes = [list(part.shape) for part in self.parts]
        if shapes.count(shapes[0]) < len(shapes):
            raise UsageError(f"{self!r}: parts of different shapes cannot be added up")
        with torch.no_grad():
            by_rank = sorted(zip(self.parts, self.get(), strict=True), key=lambda one: one[0].rank)
            total = by_rank[0][1].detach()
            for _, value in by_rank[1:]:
                total = total + value
            return total

    def get_mean(self) -> torch.Tensor:
        """`get_sum()` divided by the number of workers."""
        return self.get_sum() / len(self.parts)

    def __repr__(self) -> str:
        """Never fetches."""
        parts = ", ".join(f"rank {part.rank}: {list(part.shape)}" for part in self.parts)
        dtype = str(self.parts[0].dtype).removeprefix("torch.")
        grad = ", requires_grad=True" if any(p.requires_grad for p in self.parts) else ""
        return f"MultiPointer({parts}, {dtype}{grad})"

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiPointer:
        return MultiPointer([copy.deepcopy(part, memo) for part in self.parts])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    __add__, __radd__, __iadd__ = _operator("add")
    __sub__, __rsub__, __isub__ = _operator("sub")
    __mul__, __rmul__, __imul__ = _operator("mul")
    __truediv__, __rtruediv__, __itruediv__ = _operator("truediv")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _operator("floordiv")
    __mod__, __rmod__, __imod__ = _operator("mod")
    __pow__, __rpow__, __ipow__ = _operator("pow")
    __and__, __rand__, __iand__ = _operator("and")
    __or__, __ror__, __ior__ = _operator("or")
    __xor__, __rxor__, __ixor__ = _operator("xor")
    __lshift__, __rlshift__, __ilshift__ = _operator("lshift")
    __rshift__, __rrshift__, __irshift__ = _operator("rshift")
    __matmul__, __rmatmul__ = _on_parts("__matmul__"), _on_parts("__rmatmul__")
    __neg__, __pos__ = _on_parts("__neg__"), _on_parts("__pos__")
    __abs__, __invert__ = _on_parts("__abs__"), _on_parts("__invert__")
    __lt__, __le__ = _on_parts("__lt__"), _on_parts("__le__")
    __gt__, __ge__ = _on_parts("__gt__"), _on_parts("__ge__")
    __eq__, __ne__ = _on_parts("__eq__"), _on_parts("__ne__")
    __hash__ = object.__hash__
    __getitem__, __setitem__ = _on_parts("__getitem__"), _on_parts("__setitem__")
    # Without these an `if` would take any MultiPointer for true.
    __bool__, __int__ = _refused("bool()"), _refused("int()")
    __float__, __index__ = _refused("float()"), _refused("an index")


def for_each_worker(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Calls a function once for each worker of the MultiPointers among its arguments.

    Raises:
        UsageError: they are not on the same workers, a pointer is on one of several workers,
            or a result that is not a tensor differs between them.
    """
    leaves = tree_leaves((args, kwargs))
    several = [leaf for leaf in leaves if isinstance(leaf, MultiPointer)]
    parts_of = [{part.link: part for part in one.parts} for one in several]
    links = list(parts_of[0])  # in the order of the first one's workers
    for one, parts in zip(several, parts_of, strict=True):
        if parts.keys() != parts_of[0].keys():
            raise UsageError(f"{several[0]!r} and {one!r} are not on the same workers")
    for leaf in leaves:
        if isinstance(leaf, PointerTensor) and links != [leaf.link]:
            raise UsageError(
                f"{leaf!r} met {several[0]!r}, which is not on its worker alone: use a "
                "MultiPointer on the same workers, or one of the parts"
            )
    part_on = {id(one): parts for one, parts in zip(several, parts_of, strict=True)}
    results = []
    with _all_or_none(several):
        for link in links:

            def pick(value: Any, link: Any = link) -> Any:
                return part_on[id(value)][link] if isinstance(value, MultiPointer) else value

            results.append(function(*tree_map(pick, args), **tree_map(pick, kwargs)))
    return _joined(getattr(function, "__name__", "the result"), results)


@contextmanager
def _all_or_none(several: Sequence[MultiPointer]) -> Iterator[None]:
    """If a part does not fit, those before it are as they were: nothing has been sent."""
    parts = {id(part): part for one in several for part in one.parts}.values()
    before = [(part.remote, part.layout_there) for part in parts]
    try:
        with ExitStack() as stack:
            for link in {part.link for part in parts}:
                stack.enter_context(link.all_or_nothing())
            yield
    except BaseException:
        for part, (remote, there) in zip(parts, before, strict=True):
            if part.layout_there is not there:  # as after `t_()`
                with torch.no_grad(), torch._C._DisableTorchDispatch():
                    part.as_strided_(there.shape, there.stride, there.offset)
                part.remote, part.layout_there = remote, there
        raise


def _joined(name: str, results: list[Any]) -> Any:
    """One result for all workers: a MultiPointer, tuples of them, or what is the same for all."""
    first = results[0]
    if isinstance(first, PointerTensor):
        return MultiPointer(results)
    same_length = isinstance(first, list | tuple) and len({len(r) for r in results}) == 1
    if same_length and any(isinstance(leaf, PointerTensor) for leaf in tree_leaves(first)):
        return type(first)(_joined(name, list(each)) for each in zip(*results, strict=True))
    for result in results[1:]:
        if result is not first and result != first:
            raise UsageError(
                f"{name} is not the same on all workers ({first!s:.40} and {result!s:.40}): "
                "ask the parts"
            )
    return first
