"""What a header may say, and what comes of bytes that are none."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedmpi.comm.frame import (
    DTYPES,
    INLINE_BYTES,
    LARGEST_RANK,
    MEMORY,
    ProtocolError,
    as_bytes,
    decode,
    encode,
)
from fedmpi.errors import FedMPIError
from tests.comm.worlds import same


class Note(msgspec.Struct, frozen=True):
    text: str = "hello"


def header_of(*tensors: tuple[str, list[int], bool], inline: bytes = b"") -> bytes:
    return msgspec.msgpack.encode([{"text": ""}, tensors, inline])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_small_tensors_lie_in_the_header_and_others_in_their_own_memory(dtype) -> None:
    most = INLINE_BYTES // dtype.itemsize
    small = torch.zeros(most * dtype.itemsize, dtype=torch.uint8).view(dtype)
    large = torch.zeros((most + 1) * dtype.itemsize, dtype=torch.uint8).view(dtype)
    note, buffers = encode(Note(), [small, large, large[:0], large[0], large[1:]])
    assert [b.data_ptr() for b in buffers] == [large.data_ptr()]
    assert buffers[0].numel() == large.nbytes
    header = decode(note)
    assert [t.inline for t in header.tensors] == [True, False, True, True, True]
    assert [t.shape for t in header.tensors] == [[most], [most + 1], [0], [], [most]]
    assert [DTYPES[t.dtype] for t in header.tensors] == [dtype] * 5
    assert len(header.inline) == 2 * most * dtype.itemsize + dtype.itemsize
    assert msgspec.msgpack.decode(header.message, type=Note) == Note()


def test_a_single_element_of_any_stride_is_sent() -> None:
    note, _ = encode(Note(), [torch.tensor(1.5).expand(1, 1)])
    assert decode(note).inline == as_bytes(torch.tensor(1.5)).numpy().tobytes()


def test_what_a_parameter_holds_is_sent_without_its_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2000))
    (weight.sum() * 2).backward()
    _, (buffer,) = encode(Note(), [weight])
    assert buffer.data_ptr() == weight.data_ptr()
    assert not buffer.requires_grad


@pytest.mark.parametrize("rows", [2, 2000])
def test_conjugate_and_negative_views_are_sent_as_what_they_mean(rows: int) -> None:
    x = torch.randn(rows, dtype=torch.complex64)
    for view in (x.conj(), x.conj().imag, torch._neg_view(x.real.clone())):
        note, buffers = encode(Note(), [view])
        raw = (
            buffers[0]
            if buffers
            else torch.frombuffer(bytearray(decode(note).inline), dtype=torch.uint8)
        )
        assert same(raw.view(view.dtype), view)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros([1] * (LARGEST_RANK + 1)),
        torch.zeros(3, dtype=torch.bits8),
    ],
    ids=["sparse", "65 dimensions", "bits8"],
)
def test_what_cannot_travel_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(FedMPIError, match="cannot be sent"):
        encode(Note(), [tensor])


def test_as_bytes_shares_memory() -> None:
    for dtype in DTYPES.values():
        tensor = torch.zeros(6, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype).view(2, 3)
        raw = as_bytes(tensor)
        assert (raw.dtype, raw.dim(), raw.numel()) == (torch.uint8, 1, tensor.nbytes)
        assert raw.data_ptr() == tensor.data_ptr()
    assert as_bytes(torch.tensor(3.0)).numel() == 4
    assert as_bytes(torch.empty(0, 7)).numel() == 0


# ---- headers that no rank sends ----

PETABYTE = 2**50


@pytest.mark.parametrize(
    "note",
    [
        header_of(("uint8", [PETABYTE], False)),
        header_of(("float64", [2**20, 2**20, 2**20], False)),
        header_of(*[("uint8", [MEMORY // 4], False)] * 5),
        header_of(("uint8", [2**63], False)),
        header_of(("uint8", [2**64 - 1], False)),
        header_of(("uint8", [0, 2**62, 2**62], True)),
        header_of(("uint8", [0, 2**63], False)),
        header_of(("uint8", [1] * 100_000, True), inline=b"x"),
        header_of(("uint8", [2**64 - 1] * 1_000_000, False)),
        header_of(("uint8", [-1], False)),
        header_of(("float8_e9m9", [1], False)),
        header_of(("float32", [1], True), inline=b"123"),
        header_of(("float32", [1], True), inline=b"12345"),
        header_of(inline=b"1"),
        header_of(("\0" * 10_000, [1], True)),
    ],
    ids=lambda note: f"{len(note)} bytes",
)
def test_impossible_tensors_are_refused_before_any_memory_is_taken(note: bytes) -> None:
    with pytest.raises(ProtocolError) as refusal:
        decode(note)
    assert len(str(refusal.value)) < 2000


def test_the_limit_counts_all_tensors_of_a_frame() -> None:
    note = header_of(("uint8", [60], False), ("int16", [20], True), inline=bytes(40))
    assert len(decode(note, limit=100).tensors) == 2
    with pytest.raises(ProtocolError, match="announces 100 bytes of tensors: at most 99"):
        decode(note, limit=99)


def check(note: bytes) -> None:
    """Either a refusal, or a header whose tensors can be made."""
    try:
        header = decode(note)
    except ProtocolError:
        return
    total = 0
    for meta in header.tensors:
        total += torch.empty(meta.shape, dtype=DTYPES[meta.dtype], device="meta").nbytes
    assert total <= MEMORY
    assert len(header.inline) <= len(note)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x93" + b"\x91" * 500_000)  # deeper than any recursion
@example(b"\x93\x01\xdd\xff\xff\xff\xff")  # 4 G tensors in 7 bytes
@example(b"\x93\x01\x90\xc6\xff\xff\xff\xff")  # 4 GiB inline in 8 bytes
@example(b"\x93\x01\x91\x93\xa3\xff\xff\xff\x90\xc2\xc4\x00")  # a dtype that is not UTF-8
def test_any_bytes_are_a_header_or_a_protocol_error(note: bytes) -> None:
    check(note)


sizes = st.one_of(st.integers(0, 5), st.integers(-(2**63), 2**64 - 1))
tensor_headers = st.tuples(
    st.sampled_from([*DTYPES, "object", ""]), st.lists(sizes, max_size=6), st.booleans()
)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_a_refusal_is_one_line_whatever_was_announced() -> None:
    with pytest.raises(ProtocolError) as refusal:
        decode(header_of(("float\n\x1b[2J", [3], False)))
    assert str(refusal.value).isprintable()


@given(anything, st.lists(tensor_headers, max_size=4), st.binary(max_size=40))
def test_any_announcement_is_possible_or_refused(message, tensors, inline) -> None:
    check(msgspec.msgpack.encode([message, tensors, inline]))


@given(st.lists(anything, max_size=4))
def test_any_structure_is_a_header_or_a_protocol_error(structure) -> None:
    check(msgspec.msgpack.encode(structure))


@given(st.data())
def test_a_damaged_header_is_a_header_or_a_protocol_error(data) -> None:
    note = bytearray(
        encode(Note(), [torch.arange(10), torch.zeros(3, 3000), torch.tensor(True)])[0]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        note[data.draw(st.integers(0, len(note) - 1))] = data.draw(st.integers(0, 255))
    check(
        bytes(note[: data.draw(st.integers(0, len(note)))])
        if data.draw(st.booleans())
        else bytes(note)
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 4), max_size=5)),
        max_size=5,
    )
)
def test_every_frame_that_is_sent_is_accepted(tensors) -> None:
    made = [torch.zeros(shape).to(DTYPES[name]) for name, shape in tensors]
    header = decode(encode(Note(), made)[0])
    assert [(t.dtype, t.shape) for t in header.tensors] == tensors
    assert sum(t.nbytes() for t in header.tensors) == sum(
        math.prod(shape) * DTYPES[name].itemsize for name, shape in tensors
    )
