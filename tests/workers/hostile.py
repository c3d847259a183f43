"""Listed operators with arguments that no program of ours makes: `python -m tests.workers.hostile`.

Calls are taken from PyTorch's samples, forward and backward, and repeated with one argument changed
at a time, and with two: indices that lie far outside, tensors that are too short or too long, or
one in place of another. Every tensor ends where its memory ends, so that who reads on dies by a
signal. Each operator runs in a process of its own; prints a line for each that died, with the
argument that did it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import random
import resource
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fedmpi.errors import UsageError
from fedmpi.workers.operators import LISTED, drawing, is_random, kernel, resolve, wire_name
from tests.tensors.test_operators import (
    DIRECT,
    ENTRIES,
    FOREACH,
    IN_PLACE,
    MODULES,
    changing,
    is_in_place,
    numbers,
    samples,
)

SECONDS = 2
"""That one call may take: how long it takes is not the question here."""
PAIRS = 50
"""Calls with two arguments changed."""
MEMORY = 4 << 30
"""Of a process: sizes that are too large fail at once."""

_libc = ctypes.CDLL(None, use_errno=True)


class Gather(TorchDispatchMode):
    """Notes calls of listed operators by overload, so many of each."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.calls: dict[OpOverload, dict[str, tuple[Any, Any]]] = defaultdict(dict)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and func.overloadpacket.__name__ in LISTED:
            known = self.calls[func]
            kind = repr(tree_map(_kind, (args, kwargs)))
            if kind not in known and len(known) < self.most:
                with contextlib.suppress(Exception):
                    known[kind] = tree_map(_copy, (args, kwargs))
        return func(*args, **kwargs)


def _kind(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.dtype, value.dim())


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def gather(entries: Sequence[str] | None, most: int) -> dict[OpOverload, list[tuple[Any, Any]]]:
    """Calls of the listed operators that PyTorch's samples, modules and optimisers make.

    Args:
        entries: of the samples; without them everything is called.
        most: calls of an overload, of different shapes or numbers.
    """
    with Gather(most) as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ENTRIES if entries is None else ENTRIES.keys() & set(entries):
            _sample(name)
        if entries is None:
            _call_the_rest()
        for kind in ("Adam", "AdamW", "SGD"):
            _train(kind)
    calls = {operator: list(some.values()) for operator, some in found.calls.items()}
    return calls | dict(_into(operator, some) for operator, some in calls.items())


def _sample(name: str) -> None:
    op = ENTRIES[name]
    with contextlib.suppress(Exception):
        for sample in samples(op, 8):
            with contextlib.suppress(Exception):
                _backward(op.op(sample.input, *sample.args, **sample.kwargs))


def _call_the_rest() -> None:
    for name in IN_PLACE:
        for sample in filter(is_in_place, samples(ENTRIES[name], 2)):
            with contextlib.suppress(Exception), torch.no_grad():
                changing(ENTRIES[name])(sample.input, *sample.args, **sample.kwargs)
    for function, arguments in DIRECT.values():
        with contextlib.suppress(Exception):
            _backward(function(*arguments))
    for name in (n for n in LISTED if n.startswith("_foreach_")):
        short = name.removeprefix("_foreach_")
        others = FOREACH[short if short in FOREACH else short.removesuffix("_")]
        lists = [[o, o * 2] if isinstance(o, torch.Tensor) else o for o in others]
        getattr(torch, name)([numbers(3), numbers(3)], *lists)
    for module, inputs in MODULES.values():
        with torch.no_grad():
            module.eval()(*[numbers(2, 5, 8)] * inputs)
        _backward(module.train()(*[numbers(2, 5, 8)] * inputs))


def _into(operator: OpOverload, calls: list[Any]) -> tuple[OpOverload, list[Any]]:
    """The overload that writes its results into tensors that are there, if it may be named."""
    packet, given = operator.overloadpacket, [a.name for a in operator._schema.arguments]
    for name in packet.overloads():
        into = getattr(packet, name)
        outs = [a.name for a in into._schema.arguments if a.is_out]
        if not outs or [a.name for a in into._schema.arguments if not a.is_out] != given:
            continue
        with contextlib.suppress(UsageError):
            resolve(wire_name(into))
            places = [_places(operator, call, outs) for call in calls]
            return into, [(a, {**k, **o}) for (a, k), o in zip(calls, places, strict=True) if o]
    return operator, calls


def _places(operator: OpOverload, call: Any, names: list[str]) -> dict[str, torch.Tensor]:
    with contextlib.suppress(Exception):
        args, kwargs = tree_map(_copy, call)
        return dict(zip(names, tree_leaves(operator(*args, **kwargs)), strict=True))
    return {}


def _backward(result: Any) -> None:
    tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
    if tensors:
        torch.autograd.backward(tensors, [torch.ones_like(t) for t in tensors])


def _train(kind: str) -> None:
    for options in ({}, {"amsgrad": True} if kind != "SGD" else {"momentum": 0.9}):
        module = torch.nn.Linear(8, 3)
        steps = getattr(torch.optim, kind)(module.parameters(), lr=0.1, fused=True, **options)
        for _ in range(2):
            module(numbers(5, 8)).square().sum().backward()
            steps.step()


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, strides and all, whose last byte is the last before memory that nobody may touch."""
    tensor = tensor.detach()
    if not tensor.numel():
        return tensor.clone()
    spread = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    span = (spread + 1) * tensor.dtype.itemsize
    page = mmap.PAGESIZE
    inside = -(-span // page) * page
    block = mmap.mmap(-1, inside + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for guard in (start, start + page + inside):
        if _libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    memory = torch.frombuffer(block, dtype=torch.uint8, count=span, offset=page + inside - span)
    placed = memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    if tensor.untyped_storage().nbytes() < tensor.nbytes:  # values that stand for several
        memory.view(tensor.dtype).copy_(tensor.as_strided((spread + 1,), (1,)))
        return placed
    return placed.copy_(tensor)


def placed(call: Any) -> Any:
    """The call on guarded tensors; what is one tensor stays one."""
    known: dict[int, torch.Tensor] = {}

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in known:
            known[id(value)] = guarded(value)
        return known[id(value)]

    return tree_map(place, call)


def hostile(value: Any) -> Iterator[tuple[str, Any]]:
    """What an argument is replaced by, with a word for it."""
    if isinstance(value, torch.Tensor):
        yield from _values(value)
        yield from _sizes(value)
        yield "is None", None
    elif type(value) is int:
        yield from ((f"is {n}", n) for n in (-(10**9), -1, 0, 1, 7, 10**9, 2**62))
    elif type(value) is float:
        yield from ((f"is {x}", x) for x in (-1e30, -1.0, 0.0, 1e30, float("nan")))
    elif type(value) is bool:
        yield f"is {not value}", not value


def _values(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if tensor.dtype in (torch.bool, torch.uint8) or not tensor.numel():
        return
    far: tuple[float, ...] = (1e9, -1e9, 1e30, float("nan"))
    if not tensor.is_floating_point() and not tensor.is_complex():
        far = (10**9, -(10**9), -1, 40, 2**31 - 1)
    for value in far:
        with contextlib.suppress(RuntimeError):
            yield f"of {value}", torch.full_like(tensor, value)
            mixed = tensor.clone()
            mixed.view(-1)[-1:] = value
            yield f"that ends with {value}", mixed


def _sizes(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for d, size in enumerate(tensor.shape):
        if size > 1:
            yield f"shorter in {d}", tensor.narrow(d, 0, size - 1).contiguous()
            yield f"of one in {d}", tensor.narrow(d, 0, 1).contiguous()
        yield f"of none in {d}", tensor.narrow(d, 0, 0)
        yield f"longer in {d}", torch.cat([tensor] * 40, d)
    yield "flat", tensor.reshape(-1)
    yield "of one value", tensor.reshape(-1)[:1].clone()
    yield "without dimensions", tensor.new_zeros(())
    yield "with a dimension more", tensor.unsqueeze(0)
    yield "turned round", tensor.permute(*range(tensor.dim())[::-1])
    if tensor.numel():
        yield (
            "of one value for all",
            tensor.reshape(-1)[:1]
            .clone()
            .expand(tensor.numel())
            .as_strided(tensor.shape, [0] * tensor.dim()),
        )
    for dtype in (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        if dtype != tensor.dtype and not tensor.is_complex():
            yield f"of {dtype}", tensor.to(dtype)


def mutants(call: tuple[Any, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The call with one argument changed, and with two of them, as chance has it."""
    leaves, form = tree_flatten(call)
    changes = [[(word, new) for word, new in hostile(leaf)] for leaf in leaves]
    for k, of_one in enumerate(changes):
        for word, instead in of_one:
            changed = [*leaves[:k], instead, *leaves[k + 1 :]]
            yield f"argument {k} {word}", *tree_unflatten(changed, form)
    tensors = [k for k, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    for k, other in permutations(tensors, 2):
        changed = [*leaves[:k], leaves[other], *leaves[k + 1 :]]
        yield f"argument {k} is argument {other}", *tree_unflatten(changed, form)
    chance = random.Random(0)
    several = [k for k, of_one in enumerate(changes) if of_one]
    for _ in range(PAIRS if len(several) > 1 else 0):
        changed, words = list(leaves), []
        for k in chance.sample(several, 2):
            word, changed[k] = chance.choice(changes[k])
            words.append(f"argument {k} {word}")
        yield ", ".join(words), *tree_unflatten(changed, form)


def run(call_it: Callable[..., Any], calls: list[Any], told: int, start: int) -> None:
    """All calls from a number on; writes before each what is about to be done."""
    everything = ((n, one) for n, call in enumerate(calls) for one in mutants(call))
    for number, (n, (word, args, kwargs)) in enumerate(everything):
        if number < start:
            continue
        os.ftruncate(told, 0)
        os.pwrite(told, f"{number} call {n}: {word}".encode(), 0)
        signal.alarm(SECONDS)
        with contextlib.suppress(Exception), torch.no_grad():
            args, kwargs = placed((args, kwargs))
            call_it(*args, **kwargs)
        signal.alarm(0)


def deaths(
    operator: OpOverload, call_it: Callable[..., Any], calls: list[Any], most: int
) -> Iterator[str]:
    """Runs it in children; what killed each of the first ones."""
    start = 0
    while most:
        told = os.memfd_create("told")
        sys.stdout.flush()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for stream in (1, 2):  # words of glibc and MKL
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            with contextlib.suppress(BaseException):
                run(call_it, calls, told, start)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        number, _, word = os.pread(told, 200, 0).decode().partition(" ")
        os.close(told)
        if not os.WIFSIGNALED(status):
            return
        start = int(number) + 1
        if os.WTERMSIG(status) == signal.SIGALRM:
            continue
        most -= 1
        yield f"{operator} {signal.Signals(os.WTERMSIG(status)).name} {word}"


def main() -> None:
    """Says how many operators were called, and which died."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="operators; all if there are none")
    parser.add_argument("--of", nargs="*", help="entries of PyTorch's samples that call them")
    parser.add_argument("--calls", type=int, default=3, help="of each that are tried")
    parser.add_argument("--most", type=int, default=1, help="deaths of each that are told")
    parser.add_argument("--unchecked", action="store_true", help="the kernels as PyTorch has them")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the children are forks
    calls = gather(chosen.of, chosen.calls)
    if chosen.names:
        calls = {o: c for o, c in calls.items() if o.overloadpacket.__name__ in chosen.names}
    print(len({o.overloadpacket.__name__ for o in calls}), "operators", flush=True)
    for operator, some in sorted(calls.items(), key=lambda one: str(one[0])):
        call = operator._op if chosen.unchecked else _kernel(operator)
        for word in deaths(operator, call, some, chosen.most):
            print(word, flush=True)


def _kernel(operator: OpOverload) -> Callable[..., Any]:
    return drawing(operator, 1) if is_random(operator) else kernel(operator)


if __name__ == "__main__":
    main()
