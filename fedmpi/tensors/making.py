"""Tensors that are made of numbers alone (`torch.zeros(3)`), made on a worker.

As `with torch.device("cuda")` has tensors made on a GPU. PyTorch's own functions make such
tensors too, on their way (`one_hot`, `quantile`, an RNN's first state), and do not say so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fedmpi.tensors.calls import known_call
from fedmpi.tensors.pointer import PointerTensor, issue
from fedmpi.workers.operators import LISTED

_MAKERS = """
    arange empty empty_permuted empty_strided eye full linspace logspace normal ones rand randint
    randn randperm scalar_tensor tril_indices triu_indices zeros
"""
MAKERS = frozenset(_MAKERS.split())
"""Operators that make tensors of numbers alone."""
assert MAKERS <= LISTED.keys()


class MakingThere(TorchDispatchMode):
    """While it is entered, tensors made of numbers alone are made over a link.

    Args:
        link: to the worker, or what records a plan.
    """

    def __init__(self, link: Any) -> None:
        super().__init__()
        self.link = link

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        elsewhere = torch.device(kwargs.get("device") or "cpu").type != "cpu"
        if func.overloadpacket.__name__ not in MAKERS or types or elsewhere:
            return func(*args, **kwargs)
        known, _, numbers = known_call(func, args, kwargs, PointerTensor)
        return issue(self.link, known, [], numbers)
