"""The list: which ATen operators a message may name.

An operator is on the list if it computes tensors from tensors and numbers and does nothing
else: no files, no code, no memory of its own. All overloads of a listed name may be
used, `out` variants included. The names are those of PyTorch's dispatcher, to which
ordinary code (`x @ w`, `F.conv2d`, `loss.backward()`) comes down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload

from fedmpi.config import nearest
from fedmpi.errors import UsageError
from fedmpi.workers import lstm
from fedmpi.workers.checks import checked, is_checked

_LISTED = {
    "arithmetic": """
        abs abs_ add add_ addcdiv addcdiv_ addcmul addcmul_ ceil ceil_ clamp clamp_ clamp_max
        clamp_max_ clamp_min clamp_min_ copysign copysign_ deg2rad deg2rad_ div div_ exp exp_ exp2
        exp2_ expm1 expm1_ floor floor_ floor_divide floor_divide_ fmax fmin fmod fmod_ frac frac_
        frexp gcd gcd_ heaviside heaviside_ hypot hypot_ lcm lcm_ ldexp ldexp_ lerp lerp_ log log_
        log10 log10_ log1p log1p_ log2 log2_ logaddexp logaddexp2 maximum minimum mul mul_
        nan_to_num nan_to_num_ neg neg_ nextafter nextafter_ polar pow pow_ rad2deg rad2deg_
        reciprocal reciprocal_ remainder remainder_ round round_ rsqrt rsqrt_ rsub sgn sgn_ sign
        sign_ signbit sqrt sqrt_ sub sub_ trunc trunc_ xlogy xlogy_
    """,
    "special functions": """
        acos acos_ acosh acosh_ angle asin asin_ asinh asinh_ atan atan_ atan2 atan2_ atanh atanh_
        cos cos_ cosh cosh_ digamma digamma_ erf erf_ erfc erfc_ erfinv erfinv_ i0 i0_ lgamma
        lgamma_ logit logit_ mvlgamma polygamma sigmoid sigmoid_ sin sin_ sinc sinc_ sinh sinh_
        special_bessel_j0 special_bessel_j1 special_entr special_erfcx special_i0e special_i1
        special_i1e special_log_ndtr special_ndtri special_xlog1py special_zeta tan tan_ tanh tanh_
        igamma igamma_ igammac igammac_ mvlgamma_ polygamma_ special_airy_ai special_bessel_y0
        special_bessel_y1 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
        special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h
        special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_scaled_modified_bessel_k0
        special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0
    """,
    "Fourier": """
        _fft_c2c _fft_c2r _fft_r2c
    """,
    "comparison and logic": """
        all any bitwise_and bitwise_and_ bitwise_left_shift bitwise_left_shift_ bitwise_not
        bitwise_not_ bitwise_or bitwise_or_ bitwise_right_shift bitwise_right_shift_ bitwise_xor
        bitwise_xor_ eq eq_ ge ge_ gt gt_ isinf isnan isneginf isposinf isin le le_ logical_and
        logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_ lt lt_
        ne ne_ where bucketize searchsorted
    """,
    "reduction and scan": """
        amax amin aminmax argmax argmin count_nonzero cummax cummin cumprod cumprod_ cumsum cumsum_
        kthvalue logcumsumexp logsumexp max mean median min mode nanmedian nansum norm prod std
        std_mean sum topk var var_mean sort histc trace dist linalg_vector_norm histogram
        _histogramdd_bin_edges _histogramdd_from_bin_cts
        _histogramdd_from_bin_tensors
    """,
    "indexing": """
        gather index index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put
        index_put_ index_reduce index_reduce_ index_select masked_fill masked_fill_ masked_scatter
        masked_scatter_ put put_ scatter scatter_ scatter_add scatter_add_ scatter_reduce
        scatter_reduce_ select_backward select_scatter slice_backward slice_scatter take
        diagonal_scatter as_strided_scatter embedding embedding_dense_backward embedding_renorm_
        _embedding_bag _embedding_bag_backward _embedding_bag_forward_only
        _embedding_bag_per_sample_weights_backward masked_scatter_backward nonzero_static
        _index_put_impl_
    """,
    "shape": """
        _unsafe_view as_strided block_diag cat clone constant_pad_nd diag_embed diagonal
        diagonal_backward expand flip im2col col2im permute pixel_shuffle pixel_unshuffle
        reflection_pad1d reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward
        reflection_pad3d reflection_pad3d_backward repeat repeat_interleave replication_pad1d
        replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
        replication_pad3d_backward roll rot90 select slice split split_with_sizes squeeze stack t
        transpose tril tril_ triu triu_ unbind unfold unfold_backward unsafe_split
        unsafe_split_with_sizes unsqueeze view _chunk_cat alias_copy as_strided_copy diagonal_copy
        expand_copy narrow_copy permute_copy select_copy slice_copy split_copy split_with_sizes_copy
        squeeze_copy t_copy transpose_copy unbind_copy unfold_copy unsqueeze_copy view_copy
        channel_shuffle
    """,
    "creation and conversion": """
        _to_copy arange complex copy_ empty empty_like empty_permuted empty_strided eye fill fill_
        full full_like linspace logspace new_empty new_empty_strided new_full new_ones new_zeros
        ones ones_like scalar_tensor tril_indices triu_indices view_as_complex view_as_real
        _conj_physical conj_physical_ zero_ zeros zeros_like
    """,
    "random": """
        bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial native_dropout
        native_dropout_backward normal normal_ poisson rand rand_like randint randint_like randn
        randn_like random_ randperm rrelu_with_noise rrelu_with_noise_ rrelu_with_noise_backward
        uniform_ _standard_gamma _standard_gamma_grad
    """,
    "linear algebra": """
        _trilinear geqrf linalg_eig hash_tensor _linalg_check_errors addbmm addbmm_ addmm addmm_
        addmv addmv_ addr addr_ baddbmm baddbmm_ bmm cholesky cholesky_inverse cholesky_solve dot
        linalg_cholesky_ex linalg_cross _linalg_eigh linalg_householder_product linalg_inv_ex
        linalg_ldl_factor_ex linalg_lu linalg_lu_factor_ex linalg_lu_solve
        linalg_matrix_exp linalg_pinv linalg_qr linalg_solve_triangular _linalg_det _linalg_slogdet
        _linalg_solve_ex _linalg_svd lu_unpack mm mv ormqr triangular_solve vdot _cdist_forward
        _cdist_backward _euclidean_dist _pdist_forward _pdist_backward _addmm_activation
        _weight_norm_interface _weight_norm_interface_backward
    """,
    "convolution and pooling": """
        _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d
        _adaptive_avg_pool3d_backward adaptive_max_pool2d adaptive_max_pool2d_backward
        adaptive_max_pool3d adaptive_max_pool3d_backward avg_pool2d avg_pool2d_backward avg_pool3d
        avg_pool3d_backward convolution convolution_backward fractional_max_pool2d
        fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward
        grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward
        affine_grid_generator max_pool2d_with_indices max_pool2d_with_indices_backward
        max_pool3d_with_indices max_pool3d_with_indices_backward max_unpool2d max_unpool3d
        upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
        upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
        upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward
        upsample_nearest3d upsample_nearest3d_backward upsample_trilinear3d
        upsample_trilinear3d_backward _upsample_nearest_exact1d _upsample_nearest_exact1d_backward
        _upsample_nearest_exact2d _upsample_nearest_exact2d_backward _upsample_bilinear2d_aa
        _upsample_bilinear2d_aa_backward
    """,
    "activation": """
        mkldnn_rnn_layer mkldnn_rnn_layer_backward
        _safe_softmax _transformer_encoder_layer_fwd _native_multi_head_attention
        _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention_for_cpu_backward celu celu_ _log_softmax
        _log_softmax_backward_data _prelu_kernel _prelu_kernel_backward _softmax
        _softmax_backward_data elu elu_ elu_backward gelu gelu_ gelu_backward glu glu_backward
        hardshrink hardshrink_backward hardsigmoid hardsigmoid_ hardsigmoid_backward hardswish
        hardswish_ hardswish_backward hardtanh hardtanh_ hardtanh_backward leaky_relu leaky_relu_
        leaky_relu_backward log_sigmoid_backward log_sigmoid_forward logit_backward mish mish_
        mish_backward relu relu_ sigmoid_backward silu silu_ silu_backward softplus
        softplus_backward softshrink softshrink_backward tanh_backward threshold threshold_
        threshold_backward
    """,
    "normalisation": """
        native_batch_norm native_batch_norm_backward _native_batch_norm_legit
        _batch_norm_with_update batch_norm_backward native_group_norm native_group_norm_backward
        native_layer_norm native_layer_norm_backward renorm renorm_
    """,
    "loss": """
        binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits
        huber_loss huber_loss_backward mse_loss mse_loss_backward multi_margin_loss
        multi_margin_loss_backward multilabel_margin_loss_forward multilabel_margin_loss_backward
        nll_loss_backward nll_loss_forward nll_loss2d_backward nll_loss2d_forward smooth_l1_loss
        smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward
    """,
    "lists of tensors, as optimisers use them": """
        _foreach_add _foreach_add_ _foreach_addcdiv _foreach_addcdiv_ _foreach_addcmul
        _foreach_addcmul_ _foreach_copy_ _foreach_div _foreach_div_ _foreach_lerp _foreach_lerp_
        _foreach_maximum_ _foreach_mul _foreach_mul_ _foreach_neg _foreach_neg_ _foreach_norm
        _foreach_pow _foreach_reciprocal_ _foreach_sqrt _foreach_sqrt_ _foreach_sub _foreach_sub_
        _foreach_zero_ _fused_adam_ _fused_adamw_ _fused_sgd_
    """,
}

LISTED = {name: group for group, names in _LISTED.items() for name in names.split()}
"""Name of an operator, without overload, to the group that it stands in."""

_UNFILLED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
_UNFILLED |= {"new_empty_strided"}


NAMESPACE = "fedmpi"
"""Of operators that are our own, beside `aten`; on the wire `fedmpi::name`."""


class Own(NamedTuple):
    """An operator of ours.

    Attributes:
        operator: as PyTorch knows it: its schema, and the shapes of its results.
        kernel: what computes it; takes the seed as `number` if it is numbered.
        numbered: each call has a number of its own in place of a seed, the same on all
            workers that make it together.
    """

    operator: OpOverload
    kernel: Callable[..., Any]
    numbered: bool


_OWN: dict[str, Own] = {}


def add_operator(operator: OpOverload, kernel: Callable[..., Any], numbered: bool) -> None:
    """Puts an operator of ours on the list, for a room above this one."""
    _OWN[wire_name(operator)] = Own(operator, kernel, numbered)


class UnlistedOperator(UsageError):
    """A message or a program names an operator that is not on the list."""


def wire_name(operator: OpOverload) -> str:
    """How a message names an operator: `add.Tensor`, or `relu` for a default overload."""
    if operator.namespace == NAMESPACE:
        return f"{NAMESPACE}::{operator.overloadpacket.__name__}"
    packet, _, overload = str(operator).removeprefix("aten.").partition(".")
    return packet if overload == "default" else f"{packet}.{overload}"


@cache
def resolve(name: str) -> OpOverload:
    """The operator of that name on the wire.

    Raises:
        UnlistedOperator: the name is not on the list, or the operator has no such overload.
    """
    if name in _OWN:
        return _OWN[name].operator
    packet, _, overload = name.partition(".")
    if packet not in LISTED:
        raise UnlistedOperator(
            f"operator {name!r:.80} is not on the list of operators that run on a worker"
            f"{nearest(packet, LISTED)}; docs/tensors.md has the list"
        )
    operators = getattr(torch.ops.aten, packet)
    overload = overload or "default"
    if overload not in operators.overloads():
        raise UnlistedOperator(f"operator {packet} has no overload {overload!r:.80}")
    operator: OpOverload = getattr(operators, overload)
    if is_checked(packet) and any(argument.is_out for argument in operator._schema.arguments):
        # The kernel resizes what it writes into, which may be what it reads.
        raise UnlistedOperator(f"operator {packet} writes into no tensor that is there: {overload}")
    return operator


def kernel(operator: OpOverload) -> Callable[..., Any]:
    """What runs the operator, as fast as can be."""
    own = _OWN.get(wire_name(operator))
    if own:
        return own.kernel
    if operator.overloadpacket.__name__.startswith("mkldnn_rnn_layer"):
        return lstm.checked(operator)
    return checked(operator, operator._op)


_DRAWS_ELSEWHERE = {"_scaled_dot_product_flash_attention_for_cpu"}
"""PyTorch's tags say that these draw, but on a CPU they refuse to."""


def is_random(operator: OpOverload) -> bool:
    """Whether it draws random numbers."""
    return (
        torch.Tag.nondeterministic_seeded in operator.tags
        and operator.overloadpacket.__name__ not in _DRAWS_ELSEWHERE
    )


def is_numbered(operator: OpOverload) -> bool:
    """Whether each call has a number of its own, which stands in place of a seed."""
    own = _OWN.get(wire_name(operator))
    return own is not None and own.numbered


def drawing(operator: OpOverload, seed: int) -> Callable[..., Any]:
    """A random operator that draws from a generator of its own, not from PyTorch's.

    In-process workers share PyTorch's default generator with the owner.
    """
    source = torch.Generator().manual_seed(seed)
    if operator is torch.ops.aten.native_dropout.default:
        return partial(_dropout, source)
    # The packet finds the overload that takes a generator.
    return checked(operator, partial(operator.overloadpacket, generator=source))


def _dropout(
    source: torch.Generator, x: torch.Tensor, p: float, train: bool | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """native_dropout, which has no overload with a generator."""
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand(x.shape, generator=source) >= p
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


def leaves_memory_as_found(operator: OpOverload) -> bool:
    """Whether its result holds whatever was in memory before: a worker puts zeros there."""
    return operator.overloadpacket.__name__ in _UNFILLED
