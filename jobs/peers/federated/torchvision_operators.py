"""torchvision's wheel from PyPI beside a CPU build of PyTorch: its compiled half does not load, and
its Python half wants the schemas of two operators that nobody here calls.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    LIBRARY.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
