"""Every listed operator, on a worker and here: the same bits, forward and backward.

The samples are PyTorch's own, those of its tests of operators. A test of one of them notes
which operators were called on the worker; the last test looks for listed ones that never were.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_leaves, tree_map

import fedmpi
from fedmpi.errors import UsageError
from fedmpi.tensors.calls import known_call
from fedmpi.tensors.pointer import PointerTensor, issue
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.operators import LISTED, is_random, leaves_memory_as_found
from fedmpi.workers.signature import Callee
from tests.launch import ROOT

SAMPLES = 3
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)

aten = torch.ops.aten
called: set[str] = set()
"""Base names of the operators that ran on the worker without an error."""
lately: set[OpOverload] = set()
"""Those of the present test."""


@pytest.fixture(scope="module", autouse=True)
def _noting() -> Iterator[None]:
    run = Callee.__call__

    def noting(self: Callee, *arguments: Any) -> Any:
        result = run(self, *arguments)
        called.add(self.operator.overloadpacket.__name__)
        lately.add(self.operator)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Callee, "__call__", noting)
        yield


@pytest.fixture(scope="module")
def worker() -> Iterator[RemoteWorker]:
    with fedmpi.simulate(workers=1) as (worker,):
        yield worker


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    lately.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of deprecated operators
        yield


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as it is on a worker: contiguous, without a history."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.requires_grad_(tensor.requires_grad)


def values(function: Callable[..., Any], arguments: Any, place: Callable[..., Any]) -> list[Any]:
    """Results of a function of tensors that are placed somewhere, and gradients of their sum."""
    placed, named = tree_map(lambda v: place(v) if isinstance(v, torch.Tensor) else v, arguments)
    torch.manual_seed(1)
    results = tree_leaves(function(*placed, **named))
    tensors = [r for r in results if isinstance(r, torch.Tensor) and r.requires_grad]
    inputs = [
        v for v in tree_leaves((placed, named)) if isinstance(v, torch.Tensor) and v.requires_grad
    ]
    if tensors and inputs:
        total = sum(t.real.sum() + t.imag.sum() if t.is_complex() else t.sum() for t in tensors)
        results += torch.autograd.grad(total, inputs, allow_unused=True)
    return [r.get() if isinstance(r, PointerTensor) else r for r in results]


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, to the bit but for NaN."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and (a == b or a != a)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    equal = a == b
    return bool((equal | (a != a) & (b != b)).all())


def close(a: Any, b: Any) -> bool:
    return same(a, b) or torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def of_a_kind(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return type(a) is type(b)
    return a.shape == b.shape and a.dtype == b.dtype


def check(
    worker: RemoteWorker,
    function: Callable[..., Any],
    *positional: Any,
    alike: Callable[[Any, Any], bool] = same,
    **named: Any,
) -> None:
    """Calls a function here and on the worker; what is drawn is compared between two calls."""
    arguments = (positional, named)
    here = values(function, arguments, local)
    there = values(function, arguments, worker.send)
    worker.wait()
    assert len(here) == len(there)
    if any(leaves_memory_as_found(o) for o in lately):
        alike = of_a_kind
    elif any(is_random(o) for o in lately):
        again = values(function, arguments, worker.send)
        assert all(map(same, there, again)), "another draw from the same seed"
        alike = of_a_kind
    for a, b in zip(here, there, strict=True):
        assert alike(a, b), f"here {a}\nthere {b}"


def check_sample(
    worker: RemoteWorker,
    function: Callable[..., Any],
    sample: SampleInput,
    alike: Callable[[Any, Any], bool] = same,
) -> None:
    def processed(*positional: Any, **named: Any) -> Any:
        """What has a gradient: of eigenvectors, for one, what does not depend on their sign."""
        return sample.output_process_fn_grad(function(*positional, **named))

    check(worker, processed, sample.input, *sample.args, alike=alike, **sample.kwargs)


def entry_name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def dtype_of(op: OpInfo) -> torch.dtype | None:
    return next((dtype for dtype in DTYPES if op.supports_dtype(dtype, "cpu")), None)


def samples(op: OpInfo, count: int = SAMPLES) -> list[SampleInput]:
    dtype = dtype_of(op)
    assert dtype is not None
    torch.manual_seed(0)
    wants_grad = op.supports_autograd and dtype.is_floating_point
    return list(islice(op.sample_inputs("cpu", dtype, requires_grad=wants_grad), count))


VALUES = "depends on values that only the worker has"
HERE = "a tensor here .* met a pointer"
UNLISTED = "is not on the list of operators"

REFUSED = {
    # Shapes that depend on values.
    "argwhere": VALUES,
    "bincount": VALUES,
    "index_fill": VALUES,  # its backward pass looks for indices that occur twice
    "index_put": VALUES,  # by a mask
    "linalg.lstsq": VALUES,
    "linalg.lstsq.grad_oriented": VALUES,
    "masked_select": VALUES,
    "nn.functional.ctc_loss": VALUES,  # with lengths as tensors
    "nonzero": VALUES,
    "repeat_interleave": VALUES,  # by a tensor of counts
    "unique": VALUES,
    "unique_consecutive": VALUES,
    # PyTorch makes a tensor inside, of which it does not know that it belongs to the worker.
    "combinations": HERE,
    "istft": HERE,
    "linalg.matrix_power": HERE,
    "linalg.matrix_rank": HERE,
    "linalg.matrix_rank.hermitian": HERE,
    "masked.std": HERE,
    "masked.var": HERE,
    "nn.functional.fractional_max_pool2d": HERE,
    "nn.functional.fractional_max_pool3d": HERE,
    "nn.functional.one_hot": HERE,
    "nn.functional.scaled_dot_product_attention": HERE,  # is_causal=True; attn_mask works
    "pca_lowrank": HERE,
    "quantile": HERE,
    "svd_lowrank": HERE,
    "unravel_index": HERE,
    # Memory, formats and libraries of another kind, and indices that nobody checks.
    "_segment_reduce.lengths": UNLISTED,
    "_segment_reduce.offsets": UNLISTED,
    "_unsafe_masked_index": UNLISTED,
    "_unsafe_masked_index_put_accumulate": UNLISTED,
    "linalg.ldl_solve": UNLISTED,
    "nn.functional.linear_cross_entropy.chunked": UNLISTED,
    "nn.functional.linear_cross_entropy.chunked_none": UNLISTED,
    "resize_": UNLISTED,
    "resize_as_": UNLISTED,
    "to_sparse": UNLISTED,
}
"""Entries of which at least one sample cannot run on a worker, with what the refusal says."""

ELSEWHERE = re.compile(
    r"jiterator_|sparse\.|torch\._scaled_mm|torch\.ops\.aten\._(flash|efficient)"  # not on a CPU
    r"|as_strided\.partial_views"  # of memory beyond the tensor
    r"|chalf"  # half of a complex number has no sum
    r"|empty(_permuted|_strided)?$"  # no tensor goes in, so no pointer does
    r"|tensor_split"  # C++ reads positions out of memory, and PyTorch itself refuses
)
"""Entries that say nothing of a worker."""

NEARLY = {
    "nn.functional.multi_head_attention_forward",  # here, PyTorch fuses attention
    "prod",  # the gradient is computed in the way that needs no look at the values
}

ENTRIES = {
    entry_name(op): op
    for op in op_db
    if not ELSEWHERE.match(entry_name(op)) and dtype_of(op) is not None
}
"""PyTorch's entries by name."""


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in REFUSED])
def test_an_operator_gives_the_same_on_a_worker(worker: RemoteWorker, name: str) -> None:
    op = ENTRIES[name]
    for sample in samples(op):
        alike = close if name in NEARLY else same
        check_sample(worker, op.op, sample, alike)


@pytest.mark.parametrize("name", [name for name in REFUSED if name in ENTRIES])
def test_what_cannot_run_on_a_worker_is_refused_in_words(worker: RemoteWorker, name: str) -> None:
    op = ENTRIES[name]
    refusals = []
    for sample in samples(op, 20):
        try:
            check_sample(worker, op.op, sample)
        except UsageError as refusal:
            refusals.append(refusal)
    assert refusals
    for refusal in refusals:
        assert re.search(REFUSED[name], str(refusal))


IN_PLACE = [
    name
    for name, op in ENTRIES.items()
    if op.inplace_variant and name not in REFUSED and name != "float_power"  # makes float64
]


def changing(op: OpInfo) -> Callable[..., Any]:
    """The in-place variant, on a copy of its input."""

    def change(tensor: torch.Tensor, *positional: Any, **named: Any) -> torch.Tensor:
        copy = tensor.clone()
        result = op.inplace_variant(copy, *positional, **named)
        assert result is copy
        return result

    return change


def is_in_place(sample: SampleInput) -> bool:
    return not sample.broadcasts_input and isinstance(sample.input, torch.Tensor)


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_operator_in_place_gives_the_same_on_a_worker(worker: RemoteWorker, name: str) -> None:
    op = ENTRIES[name]
    for sample in filter(is_in_place, samples(op, 2)):
        if not op.supports_inplace_autograd:
            sample.input.requires_grad_(False)
        check_sample(worker, changing(op), sample)


def numbers(*shape: int) -> torch.Tensor:
    """The same ones each time, all positive, no two alike."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 % 1009 + 1) / 1009).reshape(shape)


def weights(*shape: int) -> torch.Tensor:
    return numbers(*shape).requires_grad_()


ROWS = torch.tensor([2, 0])

DIRECT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "_addmm_activation": (
        lambda b, x, w: torch._addmm_activation(b, x, w, use_gelu=True),
        (numbers(5), numbers(3, 4), numbers(4, 5)),
    ),
    "_embedding_bag_forward_only": (
        lambda w, i: F.embedding_bag(i, w, mode="max"),
        (numbers(5, 3), torch.tensor([[0, 2], [4, 4]])),
    ),
    "_euclidean_dist": (torch.cdist, (weights(30, 4), weights(31, 4))),
    "_index_put_impl_": (
        lambda x, i, y: aten._index_put_impl_(x.clone(), [i], y, True),
        (numbers(3, 4), torch.tensor([2, 2]), numbers(2, 4)),
    ),
    "_scaled_dot_product_flash_attention_for_cpu": (
        aten._scaled_dot_product_flash_attention_for_cpu,
        (weights(2, 3, 8, 4), weights(2, 3, 8, 4), weights(2, 3, 8, 4)),
    ),
    "_standard_gamma": (torch._standard_gamma, (weights(40),)),
    "_upsample_nearest_exact2d": (
        lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest-exact"),
        (weights(1, 2, 3, 4),),
    ),
    "_weight_norm_interface": (torch._weight_norm_interface, (weights(3, 4), weights(3, 1))),
    "affine_grid_generator": (
        lambda t: F.affine_grid(t, [2, 1, 3, 4], align_corners=False),
        (weights(2, 2, 3),),
    ),
    "embedding_renorm_": (
        lambda w, i: F.embedding(i, w.clone(), max_norm=0.5),
        (numbers(5, 3), torch.tensor([0, 3])),
    ),
    "fractional_max_pool2d": (
        lambda x, r: F.fractional_max_pool2d(x, 2, output_size=(2, 2), _random_samples=r),
        (weights(1, 2, 5, 5), numbers(1, 2, 2)),
    ),
    "fractional_max_pool3d": (
        lambda x, r: F.fractional_max_pool3d(x, 2, output_size=(2, 2, 2), _random_samples=r),
        (weights(1, 2, 5, 5, 5), numbers(1, 2, 3)),
    ),
    "gelu_": (lambda x: torch._C._nn.gelu_(x.clone()), (numbers(6),)),
    "hardswish_": (lambda x: F.hardswish(x - 0.5, inplace=True), (numbers(6),)),
    "hardtanh_": (lambda x: F.hardtanh(x * 3, inplace=True), (weights(6),)),
    "index_fill_": (
        lambda x, i: x.clone().index_fill_(0, i, 2.5),
        (numbers(3, 4), ROWS),
    ),
    "index_put_": (
        lambda x, i, y: x.clone().index_put_((i,), y),
        (weights(3, 4), ROWS, weights(2, 4)),
    ),
    "mkldnn_rnn_layer": (
        lambda x, w, v, b, h: torch.lstm(x, (h, h), [w, v, b, b], True, 1, 0.0, True, False, False),
        (weights(4, 3, 5), weights(24, 5), weights(24, 6), weights(24), numbers(1, 3, 6)),
    ),
    "native_dropout": (lambda x: torch.native_dropout(x, 0.5, True), (weights(50),)),
    "poisson": (torch.poisson, (numbers(40) * 9,)),
    "rand_like": (torch.rand_like, (numbers(40),)),
    "random_": (lambda x: x.clone().random_(0, 99), (numbers(40),)),
    "reflection_pad2d": (lambda x: F.pad(x, (1, 2, 2, 1), "reflect"), (weights(1, 2, 4, 4),)),
    "reflection_pad3d": (lambda x: F.pad(x, (1,) * 6, "reflect"), (weights(1, 2, 3, 3, 3),)),
    "repeat_interleave": (
        lambda x, n: x.repeat_interleave(n, 0, output_size=3),
        (weights(2, 3), torch.tensor([2, 1])),
    ),
    "replication_pad3d": (lambda x: F.pad(x, (1,) * 6, "replicate"), (weights(1, 2, 3, 3, 3),)),
    "select_copy": (lambda x: torch.select_copy(x, 0, 1), (weights(3, 4),)),
    "slice_copy": (lambda x: torch.slice_copy(x, 1, 1, 4, 2), (weights(3, 4),)),
    "split_copy": (lambda x: torch.split_copy(x, 2), (weights(3, 4),)),
    "unsafe_split_with_sizes": (lambda x: x.unsafe_split_with_sizes([1, 2]), (weights(3, 4),)),
    "upsample_nearest2d": (lambda x: F.interpolate(x, scale_factor=2), (weights(1, 2, 3, 4),)),
    "upsample_nearest3d": (lambda x: F.interpolate(x, scale_factor=2), (weights(1, 2, 3, 2, 2),)),
}
"""For operators that none of PyTorch's samples reaches."""


@pytest.mark.parametrize("name", DIRECT)
def test_an_operator_beyond_the_samples_gives_the_same_on_a_worker(
    worker: RemoteWorker, name: str
) -> None:
    function, arguments = DIRECT[name]
    check(worker, function, *arguments)
    assert name in {operator.overloadpacket.__name__ for operator in lately}


FOREACH = {
    "add": (numbers(3),),
    "addcdiv": (numbers(3), numbers(3), 0.5),
    "addcmul": (numbers(3), numbers(3), 0.5),
    "copy_": (numbers(3),),
    "div": (numbers(3),),
    "lerp": (numbers(3), 0.25),
    "maximum_": (numbers(3),),
    "mul": (3.0,),
    "neg": (),
    "norm": (),
    "pow": (2.0,),
    "reciprocal_": (),
    "sqrt": (),
    "sub": (numbers(3),),
    "zero_": (),
}


@pytest.mark.parametrize("name", sorted(n for n in LISTED if n.startswith("_foreach_")))
def test_an_operator_on_lists_gives_the_same_on_a_worker(worker: RemoteWorker, name: str) -> None:
    short = name.removeprefix("_foreach_")
    others = FOREACH[short if short in FOREACH else short.removesuffix("_")]

    def on_lists(x: torch.Tensor, *others: Any) -> Any:
        lists = [[o, o * 2] if isinstance(o, torch.Tensor) else o for o in others]
        changed = [x.clone(), x * 3]
        result = getattr(torch, name)(changed, *lists)
        return changed if result is None else result

    check(worker, on_lists, numbers(3), *others)


MADE: dict[OpOverload, tuple[Any, ...]] = {
    aten.arange.default: (5,),
    aten.empty.memory_format: ([2, 3],),
    aten.empty_permuted.default: ([2, 3], [1, 0]),
    aten.empty_strided.default: ([2, 3], [1, 2]),
    aten.eye.default: (3,),
    aten.full.default: ([2], 1.5),
    aten.ones.default: ([2, 3],),
    aten.rand.default: ([2, 3],),
    aten.randint.default: (9, [4]),
    aten.randn.default: ([2, 3],),
    aten.randperm.default: (7,),
    aten.scalar_tensor.default: (2.5,),
    aten.tril_indices.default: (3, 3),
    aten.triu_indices.default: (3, 3),
    aten.zeros.default: ([2, 3],),
}


@pytest.mark.parametrize("operator", MADE, ids=str)
def test_a_tensor_is_made_on_a_worker_from_numbers_alone(
    worker: RemoteWorker, operator: OpOverload
) -> None:
    def make() -> torch.Tensor:
        torch.manual_seed(1)
        known, _, numbers = known_call(operator, MADE[operator], {}, PointerTensor)
        return issue(worker.link, known, [], numbers).get()

    here, there = operator(*MADE[operator]), make()
    assert of_a_kind(here, there)
    if leaves_memory_as_found(operator):
        assert not there.any()
    else:
        assert same(make() if is_random(operator) else here, there)


OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]] = {
    "cat": (torch.cat, ([numbers(3, 4), numbers(1, 4)],), (4, 4)),
    "mm": (torch.mm, (numbers(3, 4), numbers(4, 2)), (3, 2)),
    "sub": (torch.sub, (numbers(3), numbers(3) / 2), (3,)),
    "sum": (torch.sum, (numbers(3, 4), 0), (4,)),
}


@pytest.mark.parametrize("name", OUT)
def test_results_are_written_into_a_tensor_that_is_there(worker: RemoteWorker, name: str) -> None:
    function, arguments, shape = OUT[name]

    def into(out: torch.Tensor, *positional: Any) -> torch.Tensor:
        assert function(*positional, out=out) is out
        return out

    check(worker, into, torch.zeros(shape), *arguments)
    assert any("out" in operator._overloadname for operator in lately)


def test_a_tensor_for_results_of_another_shape_is_refused(worker: RemoteWorker) -> None:
    x, out = worker.send(numbers(3)), worker.send(numbers(2))
    with pytest.raises(UsageError, match=r"would make \[3\] of a pointer to \[2\]"):
        torch.add(x, x, out=out)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64])
def test_a_number_here_joins_in_as_a_tensor_without_dimensions(
    worker: RemoteWorker, kind: torch.dtype
) -> None:
    x, number = torch.arange(3), torch.tensor(1, dtype=kind)
    assert same(worker.send(x).mul(number).get(), x * number)


def test_what_is_on_a_worker_is_not_written_into_a_tensor_here(worker: RemoteWorker) -> None:
    x = worker.send(torch.tensor(1.0))
    with pytest.raises(UsageError, match="into a tensor here"):
        torch.tensor(1.0).add_(x)
    with pytest.raises(UsageError, match="into a tensor here"):
        torch._foreach_add_([torch.tensor(1.0), x], [x, x])
    with pytest.raises(UsageError, match=HERE):
        torch.zeros(3).add_(x)


def test_a_tensor_of_positions_here_is_sent_along(worker: RemoteWorker) -> None:
    x = numbers(3, 4)
    p = worker.send(x)
    assert same(p[[2, 0]].get(), x[[2, 0]])
    assert same(p[:, ROWS].get(), x[:, ROWS])
    p[ROWS] = 0.0
    assert same(p.get(), x.index_fill(0, ROWS, 0.0))


def test_a_shape_that_is_changed_in_place_is_the_pointers_too(worker: RemoteWorker) -> None:
    x = numbers(3, 4)
    p = worker.send(x)
    other = p.detach()
    assert p.t_() is p
    assert p.unsqueeze_(0).shape == (1, 4, 3)
    assert p.transpose_(0, 2).shape == (3, 4, 1)
    p.squeeze_(2)
    p.mul_(2)
    assert p.stride() == (4, 1)
    assert same(p.get(), x * 2)
    assert same(other.get(), x * 2)
    with pytest.raises(UsageError, match="not on the list"):
        p.resize_(2)


MODULES: dict[str, tuple[torch.nn.Module, int]] = {
    "attention": (torch.nn.MultiheadAttention(8, 2), 3),
    "encoder": (torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0), 1),
    "fused attention": (torch.nn.MultiheadAttention(8, 2, batch_first=True), 3),
    "fused encoder": (torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1),
    "linear": (torch.nn.Linear(8, 3), 1),
    "normalised": (torch.nn.BatchNorm1d(5), 1),
}
"""With how many inputs; the fused ones are one operator, if they need no gradients."""


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_evaluated_without_gradients(
    worker: RemoteWorker, name: str, mode: Callable[[], Any]
) -> None:
    module, inputs = MODULES[name]
    x = numbers(2, 5, 8)
    there, sent = worker.send(module.eval()), worker.send(x)
    with mode():
        here = tree_leaves(module(*[x] * inputs))[0]
        result = tree_leaves(there(*[sent] * inputs))[0]
        assert close(here.transpose(0, 1), result.transpose(0, 1).get())


def test_a_gradient_that_nobody_asked_for_stays_away(worker: RemoteWorker) -> None:
    module, x = torch.nn.BatchNorm1d(5), numbers(2, 5, 8)
    there = worker.send(module)
    for m, data in ((module, x), (there, worker.send(x))):
        m(data).square().sum().backward()
    assert same(module.weight.grad, there.weight.grad.get())


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_fused_optimisers_take_the_same_steps_on_a_worker(
    worker: RemoteWorker, optimizer: str
) -> None:
    module, x = torch.nn.Linear(8, 3), numbers(5, 8)
    there = worker.send(module)
    for m, data in ((module, x), (there, worker.send(x))):
        steps = getattr(torch.optim, optimizer)(m.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            m(data).square().sum().backward()
            steps.step()
    assert same(module.weight.detach(), there.weight.detach().get())


def test_complex_numbers_are_conjugated_on_a_worker(worker: RemoteWorker) -> None:
    x = torch.complex(numbers(3), numbers(3) - 0.5)
    check(worker, lambda x: torch.view_as_real(x.conj().resolve_conj()), x)
    check(worker, lambda x: x.conj().imag, x)
    check(worker, torch.vdot, x, x * 2)


EVERYTHING: list[tuple[Callable[..., None], Iterable[tuple[Any, ...]]]] = [
    (test_an_operator_gives_the_same_on_a_worker, zip(ENTRIES.keys() - REFUSED.keys())),
    (test_an_operator_in_place_gives_the_same_on_a_worker, zip(IN_PLACE)),
    (test_an_operator_beyond_the_samples_gives_the_same_on_a_worker, zip(DIRECT)),
    (
        test_an_operator_on_lists_gives_the_same_on_a_worker,
        zip(n for n in LISTED if n.startswith("_foreach_")),
    ),
    (test_a_tensor_is_made_on_a_worker_from_numbers_alone, zip(MADE)),
    (test_a_shape_that_is_changed_in_place_is_the_pointers_too, [()]),
    (
        test_modules_are_evaluated_without_gradients,
        ((name, torch.no_grad) for name in MODULES),
    ),
    (test_fused_optimisers_take_the_same_steps_on_a_worker, zip(["Adam", "AdamW", "SGD"])),
    (test_complex_numbers_are_conjugated_on_a_worker, [()]),
]
"""The tests above, and what they are called with."""


def call_what_was_not(worker: RemoteWorker, listed: set[str]) -> None:
    """For a test that was selected alone: runs the others until nothing is missing."""
    for test, parameters in EVERYTHING:
        for given in parameters:
            if listed <= called:
                return
            lately.clear()
            test(worker, *given)


@pytest.mark.timeout(600)
def test_every_listed_operator_was_called(worker: RemoteWorker) -> None:
    listed = {name for name in LISTED if hasattr(aten, name)}  # not all PyTorch has them all
    call_what_was_not(worker, listed)
    covered = called & listed
    print(f"{len(covered)} of {len(listed)} listed operators ran on a worker")
    assert len(covered) >= 250
    assert sorted(listed - covered) == []


def test_the_documentation_lists_every_operator() -> None:
    """What a refusal points to; `python -m tests.tensors.test_operators` prints the section."""
    assert (ROOT / "docs" / "tensors.md").read_text().endswith(documentation())


def documentation() -> str:
    """The operators by group, as they stand at the end of docs/tensors.md."""
    groups: dict[str, list[str]] = {}
    for name, group in LISTED.items():
        groups.setdefault(group, []).append(name)
    lines = ["| group | operators |", "| --- | --- |"]
    lines += [f"| {group} | `{' '.join(sorted(names))}` |" for group, names in groups.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(documentation(), end="")
