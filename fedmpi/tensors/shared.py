"""SharedTensor: ordinary PyTorch code here, shares of the values on the parties.

Like a pointer it stands below autograd, modules and optimisers, which need to know nothing.
Each ATen operator that reaches it is looked up in a table of secure operators, which the
room of secure computation fills.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch._ops import OpOverload

from fedmpi.config import nearest
from fedmpi.errors import UsageError
from fedmpi.tensors.pointer import HasLink, PointerTensor

Secure = Callable[..., Any]

SECURE: dict[OpOverload, Secure] = {}
"""Operators that have a secure form, each with what carries it out."""


class SharedTensor(torch.Tensor):
    """A tensor of which each party holds a share, and nobody the values.

    Attributes:
        secret: the shares, and what is known of them; see `fedmpi.spdz.secret`.
    """

    secret: Any

    # Nothing to change above ATen: PyTorch's own Python need not ask.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, secret: Any, dtype: torch.dtype) -> SharedTensor:
        there = secret.share.layout_there
        with torch.inference_mode(False):
            shared: SharedTensor = torch.Tensor._make_wrapper_subclass(
                cls, there.shape, there.stride, there.offset, dtype=dtype
            )
        shared.secret = secret
        return shared

    def __init__(self, secret: Any, dtype: torch.dtype) -> None:
        pass

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return secure(func)(*args, **(kwargs or {}))

    def reveal(self, to: HasLink | None = None) -> torch.Tensor:
        """The values: here, after a wait for the parties, or on one worker.

        Args:
            to: the worker that gets the values; nobody else sees them then.

        Raises:
            RemoteError: a party has failed, or keeps its share private.
        """
        secret = self.secret
        values: torch.Tensor = secret.reveal() if to is None else secret.reveal_to(to)
        return values.to(self.dtype).requires_grad_(self.requires_grad and self.is_leaf)

    def refresh(self) -> SharedTensor:
        """The same values in other shares; a leaf."""
        return SharedTensor(self.secret.refreshed(), self.dtype)

    def get(self) -> torch.Tensor:
        """As `reveal`: the word that pointers have for it."""
        return self.reveal()

    def pointers(self) -> list[PointerTensor]:
        """What a plan needs of it: its shares, and its mask if there is one."""
        found: list[PointerTensor] = self.secret.pointers()
        return found

    def made_of(self) -> Callable[[PointerTensor], SharedTensor]:
        """Makes SharedTensors of the same scale and dtype of pointers to other shares."""
        like, dtype = self.secret.made_of(), self.dtype
        return lambda share: SharedTensor(like(share), dtype)

    def standing_in(self, stand_ins: MutableMapping[int, Any]) -> SharedTensor:
        """The same of other pointers.

        Args:
            stand_ins: for each of `pointers`, by its `id`.
        """
        shared = SharedTensor(self.secret.standing_in(stand_ins), self.dtype)
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(shared, self.requires_grad)  # type: ignore[return-value]
        shared.requires_grad_(self.requires_grad)
        return shared

    def numpy(self, *, force: bool = False) -> Any:
        """Refused: only `reveal` opens a secret."""
        raise UsageError(f"the values of {self!r} are secret: reveal() them first")

    def tolist(self) -> Any:
        """Refused, as `numpy`."""
        return self.numpy()

    def __repr__(  # type: ignore[override]
        self, *, tensor_contents: Any = None
    ) -> str:
        """Never reveals: the chain from the value to the shares."""
        dtype = str(self.dtype).removeprefix("torch.")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"SharedTensor({dtype} {list(self.shape)} > {self.secret!r}{grad})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copy = self.clone()
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad)
                if isinstance(self, torch.nn.Parameter)
                else copy.requires_grad_(self.requires_grad)
            )
        found: torch.Tensor = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(f"{self!r} cannot be saved: reveal() it first")


def secure(func: OpOverload) -> Secure:
    """What carries an operator out on shares.

    Raises:
        UsageError: it has no secure form, and PyTorch knows no way to make it of others.
    """
    found = SECURE.get(func)
    if found is None:
        found = SECURE[func] = _composed(func)
    return found


def _composed(func: OpOverload) -> Secure:
    """An operator made of others, as PyTorch decomposes it."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
        return func.decompose
    from torch._decomp import decomposition_table

    if func in decomposition_table:
        return decomposition_table[func]
    names = {known.overloadpacket.__name__ for known in SECURE}
    name = func.overloadpacket.__name__
    raise UsageError(
        f"operator {name!r} has no secure form{nearest(name, names)}; docs/secure.md has the list"
    )
