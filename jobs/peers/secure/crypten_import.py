"""Lets CrypTen 0.4.1 be imported under PyTorch 2.13.

Parts of PyTorch's old ONNX exporter have gone, which CrypTen only needs to read ONNX models:
empty ones stand in for them.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import torch.onnx

warnings.filterwarnings("ignore")
_EXPORTER = "torch.onnx._internal.registration"

try:
    importlib.import_module(_EXPORTER).registry  # noqa: B018 - whether it is there
except (ImportError, AttributeError):
    stand_in = types.ModuleType(_EXPORTER)
    stand_in.registry = None  # type: ignore[attr-defined]
    sys.modules[_EXPORTER] = stand_in
if not hasattr(torch.onnx, "OperatorExportTypes"):
    kinds = types.SimpleNamespace(ONNX=0, ONNX_ATEN=1, ONNX_FALLTHROUGH=2)
    torch.onnx.OperatorExportTypes = kinds  # type: ignore[attr-defined]
