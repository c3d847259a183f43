"""Batches of a secret: their products are right, and the mask of the whole serves them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fedmpi
from fedmpi.spdz.rows import mask, rows
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.spdz.cases import numbers

X, W = numbers(9, 4), numbers(4, 3, seed=2)
AT = torch.tensor([7, 0, 3, 3])


@pytest.fixture(scope="module", params=[2, 3, 5])
def workers(request: pytest.FixtureRequest) -> Iterator[tuple[RemoteWorker, ...]]:
    with fedmpi.simulate(request.param) as found:
        yield found


@pytest.mark.parametrize("masked", [False, True])
def test_products_of_rows(workers: tuple[RemoteWorker, ...], masked: bool) -> None:
    x, w = fedmpi.share(X, *workers), fedmpi.share(W, *workers)
    if masked:
        mask(x)
    batch = rows(x, AT)
    torch.testing.assert_close(batch.reveal(), X[AT], atol=2**-15, rtol=0)
    torch.testing.assert_close((batch @ w).reveal(), X[AT] @ W, atol=2**-10, rtol=0)
    square = batch.t() @ batch
    torch.testing.assert_close(square.reveal(), X[AT].t() @ X[AT], atol=2**-10, rtol=0)


def test_a_mask_is_opened_once(workers: tuple[RemoteWorker, ...]) -> None:
    x, w = fedmpi.share(X, *workers), fedmpi.share(W, *workers)
    mask(x)
    (rows(x, AT) @ w).reveal()

    def masks() -> int:
        [found] = [t for t in fedmpi.traffic(*workers) if t.operator == "mask"]
        return found.openings

    before = masks()
    for _ in range(3):
        (rows(x, torch.randperm(9)) @ w).reveal()
    assert masks() == before


def test_rows_of_what_was_written(workers: tuple[RemoteWorker, ...]) -> None:
    x, w = fedmpi.share(X, *workers), fedmpi.share(W, *workers)
    mask(x)
    with torch.no_grad():
        x.add_(1)
    found = (rows(x, AT) @ w).reveal()
    torch.testing.assert_close(found, (X + 1)[AT] @ W, atol=2**-10, rtol=0)
