"""Names that code written for PySyft expects on PyTorch's own classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import fedmpi
from fedmpi.tensors.modules import get
from fedmpi.tensors.remote_worker import RemoteWorker


def hook_torch() -> None:
    """Adds `send`, `share` and `fix_precision` to PyTorch's tensors and modules.

    Modules also get `get()`. `x.fix_precision(bits=20).share(alice, bob)` shares with so many
    fractional bits.

    Without this call nothing of PyTorch is changed. Unlike PySyft's, a sent module is a
    copy: the one that was here stays as it is.
    """

    def send(self: Any, worker: RemoteWorker, **options: Any) -> Any:
        """Sends it to a worker; see `RemoteWorker.send`."""
        return worker.send(self, **options)

    def share(self: Any, *workers: RemoteWorker) -> Any:
        """Shares it among workers; see `fedmpi.share`."""
        bits = getattr(self, "fractional_bits", None)
        options = {} if bits is None else {"bits": bits}
        # The room of secure computation is above this one: it is found through the front door.
        return fedmpi.share(self, *workers, **options)

    def fix_precision(self: Any, bits: int = 16) -> Any:
        """The same, to be shared with so many fractional bits."""
        fixed = copy.copy(self) if isinstance(self, nn.Module) else self.detach().clone()
        fixed.fractional_bits = bits
        return fixed

    kinds: tuple[Any, ...] = (torch.Tensor, nn.Module)
    for kind in kinds:
        kind.share = share
        kind.fix_precision = fix_precision
    torch.Tensor.send = send  # type: ignore[attr-defined]
    nn.Module.send = send  # type: ignore[attr-defined]
    nn.Module.get = get  # type: ignore[attr-defined]
