"""Names that code written for PySyft expects on PyTorch's own classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedmpi.tensors.modules import get
from fedmpi.tensors.remote_worker import RemoteWorker


def hook_torch() -> None:
    """Adds `tensor.send(worker)`, `module.send(worker)` and `module.get()` to PyTorch.

    Without this call nothing of PyTorch is changed. Unlike PySyft's, a sent module is a
    copy: the one that was here stays as it is.
    """

    def send(self: Any, worker: RemoteWorker, **options: Any) -> Any:
        """Sends it to a worker; see `RemoteWorker.send`."""
        return worker.send(self, **options)

    torch.Tensor.send = send  # type: ignore[attr-defined]
    nn.Module.send = send  # type: ignore[attr-defined]
    nn.Module.get = get  # type: ignore[attr-defined]
