"""Whatever a listed operator is called with, it does not read or write beyond its tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.workers.operators import LISTED, UnlistedOperator, kernel, resolve
from tests.launch import ROOT

aten = torch.ops.aten
POOL = "max_pool2d_with_indices_backward"

ENTRIES = {
    POOL: "nn.functional.max_pool2d",
    "max_pool3d_with_indices_backward": "nn.functional.max_pool3d",
    "adaptive_max_pool2d_backward": "nn.functional.adaptive_max_pool2d",
    "adaptive_max_pool3d_backward": "nn.functional.adaptive_max_pool3d",
    "_embedding_bag_backward": "nn.functional.embedding_bag",
    "_embedding_bag_per_sample_weights_backward": "nn.functional.embedding_bag",
    "nll_loss_backward": "nn.functional.nll_loss",
    "native_batch_norm_backward": "nn.functional.batch_norm",
    "_log_softmax_backward_data": "log_softmax",
    "_fused_adam_": "optimisers",
    "_fused_sgd_": "optimisers",
}
"""Operators that died, and which of PyTorch's samples call them."""


def sweep(*options: str) -> str:
    """What `python -m tests.workers.hostile` says."""
    command = [sys.executable, "-m", "tests.workers.hostile", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_operators_that_trust_their_caller_are_checked() -> None:
    assert LISTED.keys() >= ENTRIES.keys()
    wanted = [*ENTRIES, "--of", *sorted(set(ENTRIES.values()))]
    assert sweep(*wanted) == f"{len(ENTRIES)} operators\n"


def test_the_sweep_sees_who_reads_beyond() -> None:
    told = sweep("--unchecked", POOL, "--of", ENTRIES[POOL])
    assert f"aten.{POOL}.default SIG" in told


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_listed_operator_reads_beyond_its_tensors() -> None:
    count, *died = sweep("--calls", "8").splitlines()
    assert died == []
    # All but empty_permuted and empty_strided, which no tensor goes into.
    listed = {name for name in LISTED if hasattr(aten, name)}
    assert int(count.split()[0]) >= len(listed) - 2


def test_what_does_not_fit_is_told_in_a_sentence() -> None:
    x, indices = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    pool = kernel(aten.max_pool2d_with_indices_backward.default)
    window = [2, 2], [2, 2], [0, 0], [1, 1], False
    gradient = torch.ones(1, 1, 2, 2)
    assert pool(gradient, x, *window, indices).flatten().tolist() == [4.0] + [0.0] * 15
    for wrong in (indices - 1, indices + 16):
        with pytest.raises(ProtocolError, match="backward was given indices beyond 0 to 15"):
            pool(gradient, x, *window, wrong)
    with pytest.raises(ProtocolError, match=r"indices of shape \[1, 1, 1, 2\], not \[1, 1, 2, 2\]"):
        pool(gradient, x, *window, indices[:, :, :1])
    with pytest.raises(ProtocolError, match="without the tensor indices"):
        pool(gradient, x, *window, None)


def test_labels_that_are_ignored_are_beyond_no_bounds() -> None:
    x, weight, total = torch.randn(3, 4).log_softmax(1), None, torch.tensor(2.0)
    loss = kernel(aten.nll_loss_backward.default)
    given = torch.ones(()), x, torch.tensor([1, -100, 3]), weight, 1, -100, total
    assert torch.equal(loss(*given), aten.nll_loss_backward(*given))
    with pytest.raises(ProtocolError, match="a target beyond 0 to 3"):
        loss(*given[:2], torch.tensor([1, -100, 4]), *given[3:])


def test_a_checked_operator_writes_into_no_tensor_that_is_there() -> None:
    with pytest.raises(UnlistedOperator, match="nll_loss_backward writes into no tensor"):
        resolve("nll_loss_backward.grad_input")
    softmax, x = kernel(resolve("_softmax.out")), torch.randn(2, 3)
    assert torch.equal(softmax(x, 1, False, out=torch.empty(2, 3)), x.softmax(1))
    with pytest.raises(ProtocolError, match="one place for several results"):
        softmax(x, 1, False, out=torch.empty(1).expand(2, 3))
    with pytest.raises(ProtocolError, match="one place for several results"):
        softmax(x[:1], 1, False, out=torch.empty(9).as_strided((1, 3), (0, 1)))
