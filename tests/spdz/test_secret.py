"""What is opened of a secret, and how often: every value once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.transcripts import opened

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with fedmpi.simulate(2) as found:
        yield found


def matrices(workers: Workers, *shapes: tuple[int, int]) -> list[Tensor]:
    return [share(torch.randn(shape), *workers) for shape in shapes]


def test_a_product_opens_each_factor_and_the_result(workers: Workers) -> None:
    x, w = matrices(workers, (3, 4), (4, 5))
    assert opened(workers, lambda: x @ w) == [12, 20, 15]
    assert opened(workers, lambda: x @ w) == [15], "both are masked by now"
    assert opened(workers, lambda: x.t() @ x) == [16]
    assert opened(workers, lambda: x + x) == []
    assert opened(workers, lambda: (x + x) * 3) == []
    assert opened(workers, lambda: x * 0.3) == [12]


def test_a_square_opens_one_factor(workers: Workers) -> None:
    [x] = matrices(workers, (3, 4))
    assert opened(workers, lambda: x * x) == [12, 12]


def test_a_weight_is_opened_once_for_forward_and_backward(workers: Workers) -> None:
    layer = share(nn.Linear(4, 5, bias=False), *workers)
    x, grad = matrices(workers, (3, 4), (3, 5))
    x.requires_grad_()
    there = layer(x)
    # The gradient is masked once for both products, weight and input not again.
    assert sorted(opened(workers, lambda: there.backward(grad))) == [12, 15, 20]
    assert opened(workers, lambda: layer(x)) == [15]


def test_a_view_shows_the_mask_of_its_base(workers: Workers) -> None:
    [x] = matrices(workers, (4, 4))
    x * x
    for view in (x.t(), x[1:3], x.view(16), x.unbind()[0], x.expand(2, 4, 4), x.diagonal()):
        n = view.numel()
        assert opened(workers, lambda view=view: view * view) == [n], "the result alone"


def test_a_whole_view_masks_its_base(workers: Workers) -> None:
    x, y = matrices(workers, (3, 4), (3, 4))
    assert opened(workers, lambda: x.t() @ y) == [12, 12, 16]
    assert opened(workers, lambda: x * y) == [12]


def test_a_part_of_a_base_is_masked_alone(workers: Workers) -> None:
    """And then the base by another mask: the two openings differ by what is uniform."""
    [x] = matrices(workers, (4, 4))
    row = x[1]
    assert opened(workers, lambda: row * row) == [4, 4]
    assert opened(workers, lambda: x * x) == [16, 16]
    ours, whole = secret_of(row).masked(), secret_of(x).masked()
    assert ours.a.remote is not whole.a.remote


def test_a_change_in_place_forgets_the_mask(workers: Workers) -> None:
    [x] = matrices(workers, (3, 4))
    view = x[0]
    x * x, view * view
    x += 1
    assert opened(workers, lambda: view * view) == [4, 4]
    assert opened(workers, lambda: x * x) == [12, 12]


def test_a_sign_starts_from_what_a_product_opened(workers: Workers) -> None:
    x, w = matrices(workers, (8, 8), (8, 8))
    product = x @ w
    with_sign = opened(workers, lambda: torch.relu(product))
    assert with_sign == [48, 24, 12, 6, 2, 1], "planes of one word, and no c of its own"
    assert opened(workers, lambda: product > 0) == [64, 48, 24, 12, 6, 2, 1], "that of -product"
    [y] = matrices(workers, (8, 8))
    assert opened(workers, lambda: y < 0) == [64, 48, 24, 12, 6, 2, 1]
    assert opened(workers, lambda: y < 0) == [], "the sign is known"


def test_the_sign_of_the_forward_pass_serves_the_backward_pass(workers: Workers) -> None:
    x = matrices(workers, (8, 8))[0].requires_grad_()
    y = torch.relu(x)
    assert opened(workers, lambda: y.sum().backward()) == []


def test_a_copy_takes_the_mask_along(workers: Workers) -> None:
    [x] = matrices(workers, (3, 4))
    x * x
    copy = x.clone()
    assert opened(workers, lambda: copy * copy) == [12]
    copy += 1
    assert opened(workers, lambda: x * x) == [12]
    assert opened(workers, lambda: copy * copy) == [12, 12]
