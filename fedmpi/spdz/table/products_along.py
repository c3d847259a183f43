"""Products of many secrets: in pairs, so that n factors take log2(n) rounds."""

from __future__ import annotations

import torch

from fedmpi.spdz.table.lift import handles

aten = torch.ops.aten


@handles(aten.prod.default)
def prod(x: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Of all elements."""
    return prod_dim(x.reshape(-1), 0, dtype=dtype)


@handles(aten.prod.dim_int)
def prod_dim(
    x: torch.Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The first half times the second, again and again."""
    if not x.dim():
        return x.clone()
    whole = not x.dtype.is_floating_point
    x = x.to(dtype or (torch.int64 if whole else x.dtype))
    if not x.shape[dim]:
        return torch.ones_like(x.sum(dim, keepdim)) + x.sum(dim, keepdim)
    while (n := x.shape[dim]) > 1:
        half = n // 2
        first, second, rest = x.split([half, half, n % 2], dim)
        x = torch.cat([first * second, rest], dim) if n % 2 else first * second
    return x if keepdim else x.squeeze(dim)


@handles(aten.cumprod.default)
def cumprod(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Each element has the product of the 2^k before it, for k = 0, 1, ...

    Source: W. D. Hillis, G. L. Steele, "Data parallel algorithms" (CACM 29, 1986).
    """
    if not x.dim():
        return x.clone()
    whole = not x.dtype.is_floating_point
    x = x.to(dtype or (torch.int64 if whole else x.dtype))
    reach, n = 1, x.shape[dim]
    while reach < n:
        grown = x.narrow(dim, reach, n - reach) * x.narrow(dim, 0, n - reach)
        x = torch.cat([x.narrow(dim, 0, reach), grown], dim)
        reach *= 2
    return x


@handles(aten.addbmm.default)
def addbmm(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """beta x + alpha times the sum of a batch of matrix products."""
    rows = a.transpose(0, 1).flatten(1)  # side by side, a batch of products is one product
    return torch.addmm(x, rows, b.flatten(0, 1), beta=beta, alpha=alpha)


@handles(aten._trilinear.default)
def trilinear(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    summed: list[int],
    unroll_dim: int = 1,
) -> torch.Tensor:
    """The sum of a b c, each with some dimensions put in."""
    total: torch.Tensor | float = 1
    for factor, dims in ((a, expand_a), (b, expand_b), (c, expand_c)):
        for dim in sorted(dims):
            factor = factor.unsqueeze(dim)
        total = factor * total
    assert isinstance(total, torch.Tensor)
    return total.sum(summed)
