"""A rank's device is its share of the node's GPUs, or a refusal that says what to do."""

from __future__ import annotations

import pytest
import torch

from fedmpi.errors import UsageError
from fedmpi.federated.device import pick, wire_memory


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    # What is set for the sake of a GPU would stay set for all tests that follow.
    monkeypatch.setattr("fedmpi.federated.device._make_deterministic", lambda: None)

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_a_gpu(gpus, wanted: str) -> None:
    gpus(0)
    assert pick(wanted, 3) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match=r"no GPU here \(its CUDA: none: it is a CPU build\)"):
        pick("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(UsageError, match=r"no GPU here \(its CUDA: 12\.8\).*--device cpu"):
        pick("cuda", 0)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_ranks_of_a_node_take_its_gpus_in_turn(gpus, wanted: str) -> None:
    gpus(3)
    assert [pick(wanted, rank).index for rank in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert pick("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize("takes_gpu_memory", [True, False])
def test_on_the_cpu_the_vectors_travel_themselves(takes_gpu_memory: bool) -> None:
    vectors = [torch.zeros(3), torch.zeros(2, dtype=torch.int64)]
    found = wire_memory(vectors, takes_gpu_memory)
    assert [v.data_ptr() for v in found] == [v.data_ptr() for v in vectors]
