"""Importing torchvision beside a PyTorch build that it was not compiled for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from fedmpi.errors import UsageError

_library: torch.library.Library | None = None
"""Keeps the schemas alive: PyTorch forgets them with the object that defined them."""


def import_torchvision() -> ModuleType:
    """Imports torchvision, with its datasets and models.

    torchvision's package from PyPI cannot load its compiled operators beside a CPU-only
    PyTorch, and then fails because it describes operators that do not exist. With their
    schemas defined, all that needs no compiled operator works: datasets, transforms and
    the classification models.

    Raises:
        UsageError: torchvision is not installed, or does not import for another reason.
    """
    global _library
    try:
        return _import()
    except ImportError as error:
        raise UsageError(f"this needs torchvision ({error}): pip install torchvision") from None
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _library is not None:
            raise UsageError(
                f"torchvision does not fit PyTorch {torch.__version__} ({error}): "
                "install the torchvision made for it"
            ) from error
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half that the failed import left behind
    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _library.define(schema)
    return import_torchvision()


def _import() -> ModuleType:
    torchvision = importlib.import_module("torchvision")
    importlib.import_module("torchvision.datasets")
    importlib.import_module("torchvision.models")
    return torchvision
