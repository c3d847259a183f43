"""The names of PySyft on PyTorch's classes: only after they were asked for."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch, fedmpi
from torch import nn
assert not hasattr(torch.Tensor, "send") and not hasattr(nn.Module, "send")
fedmpi.hook_torch()
fedmpi.hook_torch()
with fedmpi.simulate(workers=1) as (alice,):
    x = torch.ones(2).send(alice)
    assert (x + x).get().tolist() == [2, 2]
    model = nn.Linear(2, 1)
    there = model.send(alice)
    assert type(there.weight).__name__ == "PointerTensor"
    assert torch.equal(there.get().weight, model.weight)
print("done")
"""


def test_hooks_are_set_only_when_asked_for() -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr
