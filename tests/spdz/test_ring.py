from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.spdz.ring import grid, limbs
from fedmpi.spdz.ring import matmul as ring
from tests.spdz.reference import uniform

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def exact(a: Tensor, b: Tensor) -> Tensor:
    """numpy's product of unsigned words, which is exact mod 2^64."""
    product = a.numpy().view(np.uint64) @ b.numpy().view(np.uint64)
    return torch.from_numpy(product.view(np.int64))


def strided(t: Tensor, how: str) -> Tensor:
    """The same values in another memory layout."""
    if how == "transposed":
        return t.mT.contiguous().mT
    if how == "apart":
        wide = torch.zeros(*t.shape[:-2], 2 * t.shape[-2], 3 * t.shape[-1], dtype=t.dtype)
        wide[..., ::2, 1::3] = t
        return wide[..., ::2, 1::3]
    return t


SIZES = [
    (1, 1, 1), (1, 784, 128), (9, 130, 1), (1, 5, 2000), (3, 5, 7), (12, 256, 16), (13, 257, 17),
    (2, 1, 3), (64, 64, 64), (241, 30, 33), (25, 300, 1030),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("how_a", ["plain", "transposed", "apart"])
@pytest.mark.parametrize("how_b", ["plain", "transposed", "apart"])
def test_matmul_is_exact(sizes: tuple[int, int, int], how_a: str, how_b: str) -> None:
    m, k, n = sizes
    a, b, start = uniform(m, k), uniform(k, n), uniform(m, n)
    a[0, 0], b[0, 0], a[-1, -1], b[-1, -1] = LOWEST, HIGHEST, HIGHEST, LOWEST
    expected = exact(a, b)
    a, b = strided(a, how_a), strided(b, how_b)
    assert torch.equal(ring.matmul(a, b), expected)
    for how in ("plain", "transposed", "apart"):
        out = strided(start.clone(), how)
        assert ring.matmul(a, b, out=out) is out
        assert torch.equal(out, expected)
        out = strided(start.clone(), how)
        ring.matmul(a, b, accumulate_into=out)
        assert torch.equal(out, start + expected)


@pytest.mark.parametrize("word", [0, 1, -1, LOWEST, HIGHEST, 2**32 - 1, 2**32, -(2**32)])
@pytest.mark.parametrize("other", [-1, LOWEST, HIGHEST, 2**31, 2**32 + 1])
def test_extreme_words(word: int, other: int) -> None:
    a, b = torch.full((13, 40), word), torch.full((40, 18), other)
    assert torch.equal(ring.matmul(a, b), exact(a, b))
    assert torch.equal(limbs.matmul(a, b), exact(a, b))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 600), st.integers(0, 70), st.sampled_from(["plain", "apart"])
)
def test_matmul_of_any_size(m: int, k: int, n: int, how: str) -> None:
    a, b = uniform(m, k), uniform(k, n)
    assert torch.equal(ring.matmul(strided(a, how), strided(b, how)), exact(a, b))


def test_empty_sums_are_zero_or_leave_what_was_there() -> None:
    a, b, c = uniform(3, 0), uniform(0, 4), uniform(3, 4)
    assert torch.equal(ring.matmul(a, b), torch.zeros(3, 4, dtype=torch.int64))
    assert torch.equal(ring.matmul(a, b, accumulate_into=c.clone()), c)
    assert ring.matmul(uniform(0, 3), uniform(3, 4)).shape == (0, 4)
    assert ring.matmul(uniform(0, 2, 3), uniform(3, 4)).shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((3, 4, 5), (3, 5, 6)),
        ((3, 4, 5), (5, 6)),
        ((4, 5), (3, 5, 2)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((7, 3, 1, 5), (7, 1, 5, 1)),
        ((2, 20, 30), (1, 30, 40)),
    ],
)
def test_batches_broadcast(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    a, b = uniform(*a_shape), uniform(*b_shape)
    assert torch.equal(ring.matmul(a, b), exact(a, b))
    assert torch.equal(ring.matmul(strided(a, "apart"), b.mT.contiguous().mT), exact(a, b))
    start = exact(a, b).flip(-1)
    assert torch.equal(ring.matmul(a, b, accumulate_into=start.clone()), start + exact(a, b))


def test_an_operand_inside_a_larger_tensor() -> None:
    a, b = uniform(5, 9, 9)[2, 3:, :4], uniform(9, 9)[2:6, 1:]
    assert torch.equal(ring.matmul(a, b), exact(a, b))


@pytest.mark.parametrize("k", [0, 1, 7, limbs.TERMS, limbs.TERMS + 1, 3 * limbs.TERMS])
def test_limbs_are_exact(k: int) -> None:
    a, b = uniform(3, k), uniform(k, 2)
    assert torch.equal(limbs.matmul(a, b), exact(a, b))
    low = torch.full((3, k), -(2**21) - (2**43))  # the largest limbs there are
    assert torch.equal(limbs.matmul(low, low.t()), exact(low, low.t()))


@pytest.mark.parametrize("word", [0, 1, -1, LOWEST, HIGHEST, 2**21, -(2**21), 2**43, 123 << 40])
def test_limbs_add_up(word: int) -> None:
    found = limbs.split(torch.tensor([word]))
    total = sum(int(limb) << (limbs.BITS * i) for i, limb in enumerate(found))
    assert (total - word) % 2**64 == 0
    assert all(abs(int(limb)) <= 2**21 for limb in found)


def test_what_matmul_refuses() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[4, 5\]"):
        ring.matmul(uniform(2, 3), uniform(4, 5))
    with pytest.raises(TypeError, match="int32"):
        ring.matmul(uniform(2, 3).int(), uniform(3, 5))
    with pytest.raises(ValueError, match=r"out has \[5, 2\]"):
        ring.matmul(uniform(2, 3), uniform(3, 5), out=uniform(5, 2))
    with pytest.raises(ValueError, match="not both"):
        ring.matmul(uniform(1, 1), uniform(1, 1), out=uniform(1, 1), accumulate_into=uniform(1, 1))


def test_threads_do_not_share_their_scratch_memory() -> None:
    a, b = uniform(200, 300), uniform(300, 200)
    expected, wrong = exact(a, b), []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(ring.matmul(a, b), expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Images, channels in and out, size, kernel, stride, padding, dilation, groups.
GEOMETRIES = [
    (2, 1, 6, (28, 28), (5, 5), (1, 1), (2, 2), (1, 1), 1),
    (2, 4, 6, (9, 8), (3, 2), (1, 1), (0, 0), (1, 1), 1),
    (2, 4, 6, (9, 8), (3, 2), (2, 3), (1, 1), (2, 1), 2),
    (2, 3, 2, (11, 13), (4, 3), (3, 2), (2, 0), (1, 2), 1),
    (1, 8, 8, (6, 6), (3, 3), (2, 2), (1, 1), (1, 1), 8),
    (2, 3, 5, (6, 6), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (3, 4, 4, (11,), (3,), (2,), (2,), (3,), 4),
    (3, 4, 8, (11,), (1,), (3,), (0,), (1,), 1),
    (0, 2, 2, (5,), (3,), (1,), (0,), (1,), 1),
]


def convolved_in_floats(x: Tensor, w: Tensor, *where: object) -> Tensor:
    return torch.convolution(x.double(), w.double(), None, *where)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_and_its_gradients(geometry: tuple) -> None:
    images, c_in, c_out, size, kernel, stride, padding, dilation, groups = geometry
    where = (stride, padding, dilation, groups)
    x, w = uniform(images, c_in, *size), uniform(c_out, c_in // groups, *kernel)
    if images:
        flat = torch.convolution(x, w, None, *where[:3], False, [0] * len(size), groups)
        assert torch.equal(ring.convolution(x, w, *where), flat)
    grad = uniform(*ring.convolution(x, w, *where).shape)
    assert grad.shape == convolved_in_floats(x, w, *where[:3], False, [0] * len(size), groups).shape
    # Small values, which float64 gets exactly; then full words, by adjointness.
    x_s, w_s, grad_s = (t % 1001 - 500 for t in (x, w, grad))
    by_x, by_w, _ = torch.ops.aten.convolution_backward(
        grad_s.double(), x_s.double(), w_s.double(), None, *where[:3], False, [0] * len(size),
        groups, [True, True, False],
    )  # fmt: skip
    assert torch.equal(ring.grad_input(grad_s, x.shape, w_s, *where), by_x.long())
    assert torch.equal(ring.grad_weight(grad_s, x_s, w.shape, *where), by_w.long())
    value = (grad * ring.convolution(x, w, *where)).sum()
    assert value == (x * ring.grad_input(grad, x.shape, w, *where)).sum()
    assert value == (w * ring.grad_weight(grad, x, w.shape, *where)).sum()


@pytest.mark.parametrize("geometry", GEOMETRIES[1:-1])
@pytest.mark.parametrize("extra", [0, 1])
def test_transposed_convolution(geometry: tuple, extra: int) -> None:
    images, c_in, c_out, size, kernel, stride, padding, dilation, groups = geometry
    output_padding = [min(extra, s - 1) for s in stride]
    x = uniform(images, c_in, *size) % 1001
    w = uniform(c_in, c_out // groups, *kernel) % 1001
    expected = convolved_in_floats(x, w, stride, padding, dilation, True, output_padding, groups)
    y = ring.convolution_transposed(x, w, stride, padding, output_padding, dilation, groups)
    assert torch.equal(y, expected.long())


def test_convolution_of_strided_tensors() -> None:
    x = uniform(2, 7, 7, 3).permute(0, 3, 1, 2)
    w = uniform(3, 3, 3, 4).permute(3, 2, 0, 1)
    where = ((1, 1), (1, 1), (1, 1), 1)
    expected = ring.convolution(x.contiguous(), w.contiguous(), *where)
    assert torch.equal(ring.convolution(x, w, *where), expected)


def test_what_convolution_refuses() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        ring.convolution(uniform(1, 3, 5), uniform(2, 4, 3), (1,), (0,), (1,))
    with pytest.raises(ValueError, match="larger than the padded input"):
        ring.convolution(uniform(1, 3, 5), uniform(2, 3, 6), (1,), (0,), (1,))


def test_limbs_see_the_same_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, walked on the CPU: the geometry as dense matrices, limbs, written back."""
    x, w = uniform(2, 4, 9, 8), uniform(6, 2, 3, 2)
    where = ((2, 3), (1, 1), (2, 1), 2)
    y = ring.convolution(x, w, *where)
    by_x, by_w = ring.grad_input(y, x.shape, w, *where), ring.grad_weight(y, x, w.shape, *where)
    a, b, c = uniform(3, 4, 5), uniform(5, 6).t().contiguous().t(), uniform(3, 4, 6)
    product = ring.matmul(a, b, accumulate_into=c.clone())
    for module in (grid, ring):
        monkeypatch.setattr(module, "by_kernel", lambda device: False)
    assert torch.equal(ring.convolution(x, w, *where), y)
    assert torch.equal(ring.grad_input(y, x.shape, w, *where), by_x)
    assert torch.equal(ring.grad_weight(y, x, w.shape, *where), by_w)
    assert torch.equal(ring.matmul(a, b, accumulate_into=c), product)
    assert torch.equal(ring.matmul(uniform(1, 0), uniform(0, 1)), torch.zeros(1, 1).long())
