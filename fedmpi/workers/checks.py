"""Checks of arguments that PyTorch's kernels leave to their caller.

Autograd hands the backward pass what the forward pass has made, so that many kernels do not look
whether indices lie inside and sizes fit; they read and write beyond memory where they do not. A
message may lie. Sizes cost nothing; indices are looked through once, by their extremes.
Results keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from fedmpi.comm.frame import ProtocolError

Check = Callable[..., None]
Pack = Callable[[Tensor], Tensor]

_CHECKS: dict[str, tuple[Check, Pack | None]] = {}
"""By operator: the check, and what brings tensors into the order that the kernel takes for
granted."""


class _Unfit(Exception):
    """What is wrong with an argument, in words without its values."""


def is_checked(packet: str) -> bool:
    """Whether an operator of that name, without overload, has a check."""
    return packet in _CHECKS


def checked(operator: OpOverload, call: Callable[..., Any]) -> Callable[..., Any]:
    """What runs an operator: `call`, after a look at the arguments where PyTorch takes none."""
    packet = operator.overloadpacket.__name__
    declared = operator._schema.arguments
    if any(a.is_out for a in declared):
        return _into_places(packet, [a.name for a in declared if a.is_out], call)
    if packet not in _CHECKS:
        return call
    check, pack = _CHECKS[packet]
    names = [a.name for a in declared]
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    tensors = [a.name for a in declared if str(a.type) == "Tensor"]

    def run(*positional: Any, **keywords: Any) -> Any:
        given = {**defaults, **dict(zip(names, positional, strict=False)), **keywords}
        for name in tensors:
            if not isinstance(given.get(name), Tensor):
                raise ProtocolError(f"{packet} without the tensor {name}")
        try:
            check(**given)
        except _Unfit as unfit:
            raise ProtocolError(f"{packet} was given {unfit}") from None
        if pack is None:
            return call(*positional, **keywords)
        return call(
            *(pack(a) if isinstance(a, Tensor) else a for a in positional),
            **{n: pack(a) if isinstance(a, Tensor) else a for n, a in keywords.items()},
        )

    return run


def _into_places(packet: str, outs: Sequence[str], call: Callable[..., Any]) -> Callable[..., Any]:
    """With results that go into tensors that are there; they are named, ATen takes no others."""

    def run(*positional: Any, **keywords: Any) -> Any:
        for name in outs:
            out = keywords.get(name)
            # Kernels take it for granted that there is a place for each value.
            if isinstance(out, Tensor) and (0 in out.stride() or _span(out) < out.numel()):
                raise ProtocolError(f"{packet} was given one place for several results: {name}")
        return call(*positional, **keywords)

    return run


def _span(tensor: Tensor) -> int:
    """From the first value in memory to the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((n - 1) * stride for n, stride in steps)


def _packed(tensor: Tensor) -> Tensor:
    """Without gaps, in one of the orders that convolutions know."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return tensor
    return tensor.contiguous()


def _rows_packed(tensor: Tensor) -> Tensor:
    """Of rows without gaps."""
    is_packed = not tensor.dim() or tensor.shape[-1] == 1 or tensor.stride(-1) == 1
    return tensor if is_packed else tensor.contiguous()


def _indices_packed(tensor: Tensor) -> Tensor:
    """Indices without gaps; the order of a sum over values depends on theirs."""
    return tensor if tensor.is_floating_point() else tensor.contiguous()


def _checks(*operators: str, pack: Pack | None = None) -> Callable[[Check], Check]:
    def entered(check: Check) -> Check:
        for operator in operators:
            _CHECKS[operator] = check, pack
        return check

    return entered


# ---- what there is to check --------------------------------------------------------------------


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Unfit(otherwise)


def _shaped(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """A tensor that may be missing has this shape."""
    if tensor is not None and tensor.shape != tuple(shape):
        raise _Unfit(f"{name} of shape {list(tensor.shape)}, not {list(shape)}")


def _within(name: str, indices: Tensor, below: int) -> None:
    """All of them count from 0 up to the one before `below`."""
    if not indices.numel() or indices.is_meta:
        return
    if indices.is_cuda:
        # The host would wait for the device; this way the device stops where it does not hold.
        torch._assert_async(((indices >= 0) & (indices < below)).all())
        return
    low, high = torch.aminmax(indices)
    if low.item() < 0 or high.item() >= below:
        raise _Unfit(f"{name} beyond 0 to {below - 1}")


def _same_samples(name: str, gradient: Tensor, x: Tensor, spatial: int) -> None:
    """A gradient has as many samples and channels as the input, of so many spatial dimensions."""
    _require(x.dim() in (spatial + 1, spatial + 2), f"an input of {x.dim()} dimensions")
    _require(gradient.dim() == x.dim(), f"a gradient of {gradient.dim()} dimensions")
    _require(prod(x.shape[-spatial:]) > 0, "an input without values")
    _shaped(name, gradient, [*x.shape[:-spatial], *gradient.shape[-spatial:]])


# ---- pooling and padding -----------------------------------------------------------------------


def _max_pool(spatial: int) -> Check:
    def check(
        grad_output: Tensor,
        self: Tensor,
        indices: Tensor,
        output_size: Sequence[int] | None = None,
        **_: Any,
    ) -> None:
        _same_samples("a gradient", grad_output, self, spatial)
        _shaped("indices", indices, grad_output.shape)
        _require(_packed(indices) is indices, "indices with gaps")
        if output_size is not None:
            _shaped("a gradient", grad_output, [*self.shape[:-spatial], *output_size])
        _within("indices", indices, prod(self.shape[-spatial:]))

    return check


for _n in (2, 3):
    _checks(
        f"max_pool{_n}d_with_indices_backward",
        f"adaptive_max_pool{_n}d_backward",
        f"fractional_max_pool{_n}d_backward",
    )(_max_pool(_n))


def _mean_pool(spatial: int) -> Check:
    def check(grad_output: Tensor, self: Tensor, **_: Any) -> None:
        _same_samples("a gradient", grad_output, self, spatial)

    return check


for _n in (2, 3):
    _checks(f"avg_pool{_n}d_backward", f"_adaptive_avg_pool{_n}d_backward")(_mean_pool(_n))


def _pad(spatial: int, reflects: bool) -> Check:
    def check(grad_output: Tensor, self: Tensor, padding: Sequence[int], **_: Any) -> None:
        _same_samples("a gradient", grad_output, self, spatial)
        _require(len(padding) == 2 * spatial, f"{len(padding)} paddings, not {2 * spatial}")
        sizes = self.shape[-spatial:]
        by_dimension = [padding[k : k + 2] for k in range(2 * spatial - 2, -1, -2)]
        if reflects:
            fits = all(max(pad) < n for n, pad in zip(sizes, by_dimension, strict=True))
            _require(fits, "a padding as large as the input")
        padded = [n + sum(pad) for n, pad in zip(sizes, by_dimension, strict=True)]
        _shaped("a gradient", grad_output, [*self.shape[:-spatial], *padded])

    return check


for _n in (1, 2, 3):
    _checks(f"reflection_pad{_n}d_backward")(_pad(_n, reflects=True))
    _checks(f"replication_pad{_n}d_backward")(_pad(_n, reflects=False))


@_checks("grid_sampler_2d_backward", "grid_sampler_3d_backward")
def _grid_sampler(
    grad_output: Tensor, input: Tensor, grid: Tensor, padding_mode: int, **_: Any
) -> None:
    _shaped("a gradient", grad_output, [*input.shape[:2], *grid.shape[1:-1]])
    if padding_mode and grid.numel() and not grid.is_meta:
        # The coordinates become indices, NaN as well.
        _require(
            bool(torch.stack(torch.aminmax(grid)).isfinite().all()), "a grid beyond all bounds"
        )


@_checks("unfold_backward")
def _unfold(
    grad_in: Tensor, input_sizes: Sequence[int], dim: int, size: int, step: int, **_: Any
) -> None:
    sizes = list(input_sizes) or [1]
    _require(-len(sizes) <= dim < len(sizes) and step > 0, "a dimension or a step that is none")
    _require(0 <= size <= sizes[dim], "a window that does not fit")
    sizes[dim] = (sizes[dim] - size) // step + 1
    _shaped("a gradient", grad_in, [*sizes, size] if input_sizes else [size])


@_checks("_upsample_bilinear2d_aa", "_upsample_bilinear2d_aa_backward")
def _upsample(
    output_size: Sequence[int],
    scales_h: float | None,
    scales_w: float | None,
    self: Tensor | None = None,
    input_size: Sequence[int] = (),
    **_: Any,
) -> None:
    sizes = input_size if self is None else self.shape
    _require(len(sizes) == 4 and len(output_size) == 2, "an image of other than two dimensions")
    for n, out, scale in zip(sizes[-2:], output_size, (scales_h, scales_w), strict=True):
        _require(scale is None or out <= n * scale < out + 1, "a scale that is not that of sizes")


@_checks("_fft_c2c", "_fft_r2c", "_fft_c2r")
def _fft(self: Tensor, dim: Sequence[int], **_: Any) -> None:
    _require(all(0 <= d < self.dim() for d in dim), "a dimension that the tensor does not have")


# ---- losses ------------------------------------------------------------------------------------


@_checks("nll_loss_backward", "nll_loss2d_backward")
def _nll_loss(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
    **_: Any,
) -> None:
    _require(self.dim() in (1, 2, 4), f"an input of {self.dim()} dimensions")
    at = 0 if self.dim() == 1 else 1
    classes = self.shape[at]
    _shaped("a target", target, [*self.shape[:at], *self.shape[at + 1 :]])
    _shaped("a weight", weight, [classes])
    _require(total_weight.numel() == 1, "a total weight that is not one number")
    if reduction == 0:
        _shaped("a gradient", grad_output, target.shape)
    else:
        _require(grad_output.numel() == 1, "a gradient that is not one number")
    try:
        _within("a target", target, classes)
    except _Unfit:
        # Only now: as a rule nothing is ignored.
        _within("a target", target[target != ignore_index], classes)


@_checks("_log_softmax_backward_data", "_softmax_backward_data")
def _softmax(grad_output: Tensor, output: Tensor, **_: Any) -> None:
    _shaped("a gradient", grad_output, output.shape)


# ---- normalisation -----------------------------------------------------------------------------


@_checks(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
)
def _batch_norm(input: Tensor, **others: Any) -> None:
    _require(input.dim() > 1, f"an input of {input.dim()} dimensions")
    for name in ("weight", "bias", "running_mean", "running_var"):
        _shaped(name, others.get(name), input.shape[1:2])


@_checks("native_batch_norm_backward", "batch_norm_backward")
def _batch_norm_backward(grad_out: Tensor, input: Tensor, **others: Any) -> None:
    _batch_norm(input, **others)
    _shaped("a gradient", grad_out, input.shape)
    is_trained = others["train"] if "train" in others else others["update"]
    spread = "save_invstd" if "save_invstd" in others else "save_var"
    for name in ("save_mean", spread) if is_trained else ("running_mean", "running_var"):
        _require(others[name] is not None, f"no {name}")
        _shaped(name, others[name], input.shape[1:2])


@_checks("native_layer_norm_backward", pack=_packed)
def _layer_norm(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    **_: Any,
) -> None:
    inner = len(normalized_shape)
    _require(0 < inner <= input.dim(), f"{inner} normalised dimensions")
    _shaped("an input", input, [*input.shape[:-inner], *normalized_shape])
    _shaped("a gradient", grad_out, input.shape)
    for name, tensor in (("a weight", weight), ("a bias", bias)):
        _shaped(name, tensor, normalized_shape)
    for name, tensor in (("a mean", mean), ("a deviation", rstd)):
        _require(tensor.numel() == prod(input.shape[:-inner]), f"{name} of another number of rows")


@_checks("native_group_norm", "native_group_norm_backward", pack=_packed)
def _group_norm(**_: Any) -> None:
    """PyTorch checks the sizes itself."""


def _norms(v: Tensor, dim: int, norms: Sequence[Tensor]) -> None:
    _require(v.numel() > 0 and dim in (0, v.dim() - 1), "no weight, or no such dimension of it")
    for tensor in norms:
        _require(tensor.numel() == v.shape[dim], "norms of another number of rows")


@_checks("_weight_norm_interface", pack=_packed)
def _weight_norm(v: Tensor, g: Tensor, dim: int, **_: Any) -> None:
    _norms(v, dim, [g])


@_checks("_weight_norm_interface_backward", pack=_packed)
def _weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, dim: int, **_: Any
) -> None:
    _norms(saved_v, dim, [saved_g, saved_norms])
    _shaped("a gradient", grad_w, saved_v.shape)


# ---- embeddings --------------------------------------------------------------------------------


def _bags(indices: Tensor, offsets: Tensor, rows: int) -> None:
    """Where bags of indices begin, in order, the first one at 0."""
    _require(indices.dim() == offsets.dim() == 1, "indices or offsets that are no list")
    _within("indices", indices, rows)
    _within("offsets", offsets, len(indices) + 1)
    _require(len(offsets) > 0 or not len(indices), "indices of no bag")
    if len(offsets) and not offsets.is_meta:
        _require(not offsets[0] and bool((offsets[1:] >= offsets[:-1]).all()), "offsets that fall")


def _ends(offsets: Tensor, count: int) -> bool:
    return offsets.is_meta or bool(offsets[-1] == count)


@_checks("_embedding_bag", "_embedding_bag_forward_only", pack=_indices_packed)
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    **_: Any,
) -> None:
    _require(weight.dim() == 2, f"a weight of {weight.dim()} dimensions")
    _bags(indices, offsets, len(weight))
    _shaped("weights of samples", per_sample_weights, indices.shape)
    if include_last_offset:
        _require(len(offsets) > 0 and _ends(offsets, len(indices)), "no last offset")


def _bags_of(grad: Tensor, indices: Tensor, offsets: Tensor, offset2bag: Tensor, n: int) -> None:
    """Bags as the forward pass has left them; without `offset2bag` the backward pass makes it."""
    _require(grad.dim() == 2, f"a gradient of {grad.dim()} dimensions")
    _bags(indices, offsets, n)
    if offset2bag.numel():
        _shaped("bags of indices", offset2bag, indices.shape)
        _within("bags of indices", offset2bag, len(grad))
        return
    is_last_there = len(offsets) == len(grad) + 1 and _ends(offsets, len(indices))
    _require(len(offsets) == len(grad) or is_last_there, "offsets of another number of bags")


@_checks("_embedding_bag_backward", pack=_indices_packed)
def _embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    mode: int,
    per_sample_weights: Tensor | None,
    **_: Any,
) -> None:
    _bags_of(grad, indices, offsets, offset2bag, num_weights)
    _shaped("weights of samples", per_sample_weights, indices.shape)
    if mode == 1:
        _shaped("sizes of bags", bag_size, [len(grad)])
    if mode == 2:
        _shaped("indices of maxima", maximum_indices, grad.shape)
        _within("indices of maxima", maximum_indices, num_weights)


@_checks("_embedding_bag_per_sample_weights_backward", pack=_indices_packed)
def _per_sample_weights(
    grad: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor, offset2bag: Tensor, **_: Any
) -> None:
    _require(weight.dim() == 2, f"a weight of {weight.dim()} dimensions")
    _bags_of(grad, indices, offsets, offset2bag, len(weight))
    _shaped("a gradient", grad, [len(grad), weight.shape[1]])


# ---- attention ---------------------------------------------------------------------------------


@_checks("_scaled_dot_product_flash_attention_for_cpu", pack=_rows_packed)
def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **_: Any
) -> None:
    _require(query.dim() == key.dim() == 4, "a query or a key of other than four dimensions")
    batch, heads, length, size = query.shape
    _require(query.numel() > 0 and key.numel() > 0, "no query, or no key")
    _shaped("a key", key, [batch, key.shape[1], key.shape[2], size])
    _shaped("a value", value, key.shape)
    _require(heads % key.shape[1] == 0, f"{heads} heads for {key.shape[1]} of the keys")
    if attn_mask is not None:
        full = (batch, heads, length, key.shape[2])
        _require(attn_mask.dim() in (2, 4), f"a mask of {attn_mask.dim()} dimensions")
        fits = all(n in (1, m) for n, m in zip(attn_mask.shape[::-1], full[::-1], strict=False))
        _require(fits, f"a mask of shape {list(attn_mask.shape)} for {list(full)}")


@_checks("_scaled_dot_product_flash_attention_for_cpu_backward", pack=_rows_packed)
def _attention_backward(
    grad_out: Tensor, query: Tensor, out: Tensor, logsumexp: Tensor, **others: Any
) -> None:
    _attention(query, **others)
    _shaped("a gradient", grad_out, query.shape)
    _shaped("a result", out, query.shape)
    _shaped("a logsumexp", logsumexp, query.shape[:3])


def _projections(x: Tensor, width: int, heads: int, others: dict[str, Any]) -> None:
    _require(x.dim() == 3 and x.numel() > 0, "an input of other than three dimensions, or none")
    _require(x.shape[2] == width and heads > 0 and width % heads == 0, f"{heads} heads of {width}")
    shapes = {"qkv_weight": [3 * width, width], "qkv_bias": [3 * width]}
    shapes |= {"proj_weight": [width, width], "proj_bias": [width]}
    for name, shape in shapes.items():
        _shaped(name, others[name], shape)
    for name, tensor in others.items():
        is_number = isinstance(tensor, Tensor) and name != "mask"
        _require(not is_number or tensor.dtype == x.dtype, f"{name} of another dtype")


@_checks("_native_multi_head_attention")
def _heads(query: Tensor, embed_dim: int, num_head: int, **others: Any) -> None:
    _projections(query, embed_dim, num_head, others)
    key, value = others["key"], others["value"]
    _require(key.dim() == 3, f"a key of {key.dim()} dimensions")
    _shaped("a key", key, [len(query), key.shape[1], embed_dim])
    _shaped("a value", value, key.shape)


@_checks("_transformer_encoder_layer_fwd")
def _encoder_layer(src: Tensor, embed_dim: int, num_heads: int, **others: Any) -> None:
    _projections(src, embed_dim, num_heads, others)
    inner = others["ffn_weight_1"].shape[:1]
    _shaped("ffn_weight_1", others["ffn_weight_1"], [*inner, embed_dim])
    _shaped("ffn_bias_1", others["ffn_bias_1"], inner)
    _shaped("ffn_weight_2", others["ffn_weight_2"], [embed_dim, *inner])
    for name in ("norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2", "ffn_bias_2"):
        _shaped(name, others[name], [embed_dim])


# ---- distances and factors ---------------------------------------------------------------------


@_checks("_cdist_backward")
def _cdist(grad: Tensor, x1: Tensor, x2: Tensor, cdist: Tensor, **_: Any) -> None:
    _require(x1.dim() > 1 and x2.dim() > 1, "rows that are no matrix")
    _require(x1.shape[-1] == x2.shape[-1], "rows of two lengths")
    try:
        batch = np.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    except ValueError:
        raise _Unfit("matrices of two numbers") from None
    _shaped("distances", cdist, [*batch, x1.shape[-2], x2.shape[-2]])
    _shaped("a gradient", grad, cdist.shape)


@_checks("_pdist_backward", pack=_packed)
def _pdist(grad: Tensor, self: Tensor, pdist: Tensor, **_: Any) -> None:
    _require(self.dim() == 2 and len(self) > 0, "rows that are no matrix, or none")
    _shaped("distances", pdist, [len(self) * (len(self) - 1) // 2])
    _shaped("a gradient", grad, pdist.shape)


@_checks("lu_unpack")
def _lu_unpack(LU_data: Tensor, LU_pivots: Tensor, unpack_pivots: bool, **_: Any) -> None:
    if unpack_pivots:
        _require(LU_data.dim() > 1, "factors that are no matrix")
        *batch, m, n = LU_data.shape
        _shaped("pivots", LU_pivots, [*batch, min(m, n)])
        _within("pivots", LU_pivots - 1, m)


# ---- what is changed in place ------------------------------------------------------------------


@_checks("rrelu_with_noise", "rrelu_with_noise_")
def _rrelu(self: Tensor, noise: Tensor, **_: Any) -> None:
    _shaped("noise", noise, self.shape)
    _require(self.is_contiguous() and noise.is_contiguous(), "noise with gaps")


@_checks("_fused_adam_", "_fused_adamw_", "_fused_sgd_")
def _fused(self: list[Tensor], **others: Any) -> None:
    """The states that there are; which there have to be, PyTorch checks."""
    for name in ("grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "momentum_buffer_list"):
        tensors = others.get(name) or self
        _require(len(tensors) == len(self), f"{len(tensors)} {name} for {len(self)} parameters")
        for parameter, tensor in zip(self, tensors, strict=True):
            _shaped(name, tensor, parameter.shape)
            _require(_packed(tensor) is tensor, f"{name} with gaps")
    if others.get("amsgrad"):
        _require(len(others["max_exp_avg_sqs"]) == len(self), "no max_exp_avg_sqs")
    for step in others.get("state_steps", ()):
        _require(step.numel() == 1, "a step count that is not one number")
