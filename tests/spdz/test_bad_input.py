"""A mistake gets one sentence at the line that made it, and the session goes on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fedmpi
from fedmpi.errors import RemoteError, UsageError
from fedmpi.spdz.sharing import share
from fedmpi.tensors.remote_worker import RemoteWorker

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with fedmpi.simulate(3) as found:
        yield found


@pytest.fixture(autouse=True)
def _goes_on(workers: Workers) -> Iterator[None]:
    """After a mistake the session works as before."""
    yield
    x = share(torch.tensor([1.5, -2.0]), *workers)
    assert (torch.relu(x) * x).reveal().tolist() == [2.25, 0.0]  # type: ignore[attr-defined]


def refused(what: Callable[[], Any], *words: str) -> None:
    """One sentence, with these words in it, raised before anything was sent."""
    with pytest.raises((UsageError, IndexError)) as caught:
        what()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("value", [2.0**30, -(2.0**30), 1e300, INFINITE, -INFINITE, NAN])
def test_values_that_cannot_be_shared(workers: Workers, value: float) -> None:
    refused(lambda: share(torch.tensor([0.0, value]), *workers), "cannot be shared", "NaN")


@pytest.mark.parametrize("value", [2.0**30, INFINITE, -INFINITE, NAN])
@pytest.mark.parametrize(
    "use",
    [
        lambda x, v: x + v,
        lambda x, v: v - x,
        lambda x, v: x * v,
        lambda x, v: x > v,
        lambda x, v: x + torch.tensor([1.0, v]),
        lambda x, v: x * torch.tensor([1.0, v]),
        lambda x, v: x.masked_fill(torch.tensor([True, False]), v),
        lambda x, v: x.clamp(-v, v),
        lambda x, v: x.fill_(v),
        lambda x, v: torch.where(x > 0, x, v),
        lambda x, v: x.view(1, 2) @ torch.tensor([[v], [1.0]]),
        lambda x, v: F.pad(x, (1, 1), value=v),
        lambda x, v: torch.cat([x, torch.tensor([v])]),
    ],
)
def test_public_operands_that_do_not_fit(workers: Workers, use: Any, value: float) -> None:
    x = share(torch.tensor([1.0, 2.0]), *workers)
    refused(lambda: use(x, value))


def test_largest_values_still_work(workers: Workers) -> None:
    values = torch.tensor([2.0**30 - 64, -(2.0**30) + 64], dtype=torch.float64)
    x = share(values, *workers)
    assert torch.equal(x.reveal(), values)
    assert (x > 0).reveal().tolist() == [True, False]  # type: ignore[attr-defined]


def test_complex_values_and_whole_numbers_beyond_the_ring(workers: Workers) -> None:
    refused(
        lambda: share(torch.zeros(2, dtype=torch.complex64), *workers), "complex64", "real part"
    )
    refused(lambda: share(torch.tensor([2**62]), *workers), "2^62")


@pytest.mark.parametrize("bits", [0, 29, -1])
def test_bits_out_of_range(workers: Workers, bits: int) -> None:
    refused(lambda: share(torch.zeros(2), *workers, bits=bits), f"bits = {bits}", "1 to 28")


def test_parties_that_are_no_parties(workers: Workers) -> None:
    alice, bob, _ = workers
    x = torch.zeros(2)
    refused(lambda: share(x), "at least 2 different workers")
    refused(lambda: share(x, alice), "parties [1]", "at least 2 different workers")
    refused(lambda: share(x, alice, bob, alice), "parties [1, 2, 1]", "different")
    refused(lambda: share(x, alice, "bob"), "'bob'", "worker")  # type: ignore[call-overload]


def test_shares_of_different_parties(workers: Workers) -> None:
    alice, bob, carol = workers
    x, y = share(torch.ones(2), alice, bob), share(torch.ones(2), bob, carol)
    for use in (torch.add, torch.mul, torch.dot, torch.maximum, torch.eq):
        refused(lambda use=use: use(x, y), "shared among different parties", "ranks 1, 2")
    refused(lambda: torch.cat([x, y]), "shared among different parties")
    refused(lambda: torch.where(x > 0, x, y), "shared among different parties")
    refused(lambda: x.add_(y), "shared among different parties")
    refused(lambda: x.copy_(y), "shared among different parties")
    assert (x + 1).reveal().tolist() == [2.0, 2.0]  # type: ignore[attr-defined]


def test_shares_of_another_job(workers: Workers) -> None:
    with fedmpi.simulate(2) as others:
        old = share(torch.ones(2), *others)
        new = share(torch.ones(2), *workers[:2])
        refused(lambda: old + new, "different parties")
        refused(lambda: share(torch.ones(2), others[0], workers[1]), "job")
    refused(lambda: old + 1, "job that has ended")
    refused(lambda: old.reveal(), "job that has ended")
    refused(lambda: old * new, "different parties")


def test_a_pointer_does_not_mix_with_shares(workers: Workers) -> None:
    x, pointer = share(torch.ones(2), *workers), workers[0].send(torch.ones(2))
    for use in (torch.add, torch.mul, torch.dot, torch.maximum, torch.eq):
        refused(lambda use=use: use(x, pointer), "PointerTensor(rank 1", "shared")
        refused(lambda use=use: use(pointer, x), "pointer")
    refused(lambda: torch.cat([pointer, x]), "ointer")
    refused(lambda: x.add_(pointer), "PointerTensor(rank 1")
    assert pointer.get().tolist() == [1.0, 1.0]


def test_an_operator_without_a_secure_form_is_named(workers: Workers) -> None:
    x = share(torch.ones(3, 3), *workers)
    refused(lambda: torch.linalg.eigh(x), "'_linalg_eigh'", "no secure form")
    refused(lambda: torch.erfinv(x), "'erfinv'", "docs/secure.md")
    refused(lambda: x.cummax(0), "'cummax'", "did you mean")


@pytest.mark.parametrize(
    "use",
    [
        bool, float, int, lambda x: x.item(), lambda x: x.tolist(), lambda x: x.numpy(),
        lambda x: 1 if x > 0 else 2, lambda x: [1, 2][x > 0], lambda x: range(x > 0),
        lambda x: torch.is_nonzero(x),
    ],
)  # fmt: skip
def test_a_secret_decides_nothing_here(workers: Workers, use: Any) -> None:
    x = share(torch.tensor(1.5), *workers)
    refused(lambda: use(x), "reveal()")


def test_comparing_whole_tensors_needs_a_reveal(workers: Workers) -> None:
    x = share(torch.ones(2), *workers)
    refused(lambda: torch.equal(x, x), "reveal()")
    refused(lambda: torch.allclose(x, x), "reveal()")


def test_division_by_zero(workers: Workers) -> None:
    x = share(torch.ones(2), *workers)
    for zero in (0, 0.0, torch.tensor(0.0), torch.tensor([1.0, 0.0])):
        refused(lambda zero=zero: x / zero, "divided by 0")
    refused(lambda: x.div_(0), "divided by 0")


def test_results_whose_shape_is_secret(workers: Workers) -> None:
    x = share(torch.tensor([1.0, -1.0, 2.0]), *workers)
    for use in (lambda: x[x > 0], lambda: x.masked_select(x > 0), lambda: x.nonzero()):
        refused(use, "shape of the result would reveal")


def test_secrets_are_not_written_into_plain_memory(workers: Workers) -> None:
    x, plain = share(torch.ones(2), *workers), torch.zeros(2)
    refused(lambda: plain.add_(x), "not shared")
    refused(lambda: plain.copy_(x), "not shared")
    refused(lambda: plain.__setitem__(0, x[0]), "not shared")
    refused(lambda: plain.index_put_((torch.tensor([0]),), x[:1]), "not shared")
    assert plain.tolist() == [0, 0]


def test_indices_out_of_bounds(workers: Workers) -> None:
    x = share(torch.ones(3, 2), *workers)
    refused(lambda: x[5], "out of bounds")
    refused(lambda: x[torch.tensor([0, 3])], "out of bounds", "size 3")
    refused(lambda: x.index_select(1, torch.tensor([-3])), "out of bounds", "size 2")
    refused(lambda: x.gather(0, torch.tensor([[4]])), "out of bounds")
    refused(lambda: x.scatter_add(0, torch.tensor([[4]]), x), "out of bounds")


def test_what_has_no_secure_variant_says_what_has(workers: Workers) -> None:
    x = share(torch.ones(3), *workers)
    refused(lambda: x.sort(stable=True), "stable=True")
    refused(lambda: x[:0].max(), "no elements")
    refused(lambda: x[:1].var(), "variance")
    refused(lambda: x.to(torch.int64), "torch.int64", "reveal()")


def test_a_secret_is_not_saved(workers: Workers) -> None:
    x = share(torch.ones(3), *workers)
    refused(lambda: torch.save(x, io.BytesIO()), "cannot be saved", "reveal()")


def test_shapes_that_do_not_fit_are_pytorchs_to_tell(workers: Workers) -> None:
    x = share(torch.ones(3, 2), *workers)
    uses: list[Callable[[], Any]] = [
        lambda: x + torch.ones(4), lambda: x @ x, lambda: x @ torch.ones(3, 3), lambda: x * x.t(),
        lambda: torch.cat([x, x.t()]), lambda: x.view(5), lambda: F.conv2d(x[None, None], x),
        lambda: F.conv2d(x[None, None], torch.ones(1, 2, 1, 1)), lambda: x.expand(4, 4),
        lambda: F.linear(x, x.t()), lambda: F.max_pool2d(x[None], 5), lambda: x.max(7),
        lambda: torch.where(x > 0, x, torch.ones(5)), lambda: x.maximum(x.t()),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises((RuntimeError, ValueError, IndexError, UsageError)) as caught:
            use()
        assert not isinstance(caught.value, RemoteError)
    x.reveal()
