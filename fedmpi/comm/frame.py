"""Frames: a number, a msgpack header and zero or more raw tensor buffers.

The header is one note: the message (any msgspec Struct, left undecoded here, since this
room does not know the commands), the dtype and shape of each tensor, and the bytes of
the tensors that are small. The other tensors follow as buffers, out of their own memory
and into their own memory. Ahead of the header stands the frame's number on its way, 8 bytes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence

import msgspec
import torch

from fedmpi.decoding import msgpack_decoder
from fedmpi.errors import FedMPIError

INLINE_BYTES = 4096
"""A tensor of at most this many bytes travels inside the header: one message, not two."""
HEADER_LIMIT = 256 * 2**20
"""Longest header that is accepted."""
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes of memory of this node: a frame of more is refused before any of it is allocated."""
LARGEST_RANK = 64
"""Most dimensions of a tensor: as many as NumPy and PyTorch's element-wise operators take."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises on bytes that are not what they should be."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex32,
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def reason(error: Exception) -> str:
    """Why bytes are not what they should be; of what they say, nothing that steers a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(error))


class ProtocolError(FedMPIError):
    """A message that no FedMPI rank of this version sends."""


class Unreadable(ProtocolError):
    """A frame that has arrived, and is of no use; the next one can be received.

    Attributes:
        asks: the sender waits for an answer, as far as could be read.
    """

    def __init__(self, sentence: str, asks: bool = False) -> None:
        super().__init__(sentence)
        self.asks = asks


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """What the receiver must know before the bytes of a tensor arrive."""

    dtype: str
    shape: list[int]
    inline: bool

    def nbytes(self) -> int:
        """Length in bytes; refuses a dtype or a shape that no tensor has."""
        dtype, shape = DTYPES.get(self.dtype), self.shape
        if dtype is None or len(shape) > LARGEST_RANK or any(n < 0 for n in shape):
            raise ProtocolError(
                f"a frame announces a tensor {self.dtype!r:.20} {shape[:LARGEST_RANK]}"
            )
        # The strides of an empty tensor have to fit into int64 too.
        if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
            raise ProtocolError(
                f"a frame announces a tensor {self.dtype} {shape}: beyond any memory"
            )
        return math.prod(shape) * dtype.itemsize


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The note at the head of every frame.

    Attributes:
        message: left undecoded.
        tensors: of the frame, in order.
        inline: bytes of the small ones, one after another.
        asks: the sender waits for an answer; it gets one even if nobody can read the message.
    """

    message: msgspec.Raw
    tensors: list[TensorHeader]
    inline: bytes
    asks: bool = False


_NUMBER = struct.Struct("<Q")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgpack_decoder(Header)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor as a uint8 vector, shared, not copied."""
    # Each call of PyTorch takes a microsecond, and a vector needs only the last one.
    flat = tensor.detach() if tensor.requires_grad else tensor
    if flat.dim() != 1 or flat.numel() < 2:
        # reshape(-1) may keep the stride 0 of a single element, of which no bytes can be viewed.
        flat = flat.as_strided((flat.numel(),), (1,))
    return flat if flat.dtype == torch.uint8 else flat.view(torch.uint8)


def encode(
    message: msgspec.Struct, tensors: Sequence[torch.Tensor], asks: bool = False
) -> tuple[bytes, list[torch.Tensor]]:
    """The header of a frame, and the uint8 vectors that follow it.

    Args:
        message: anything msgspec can encode.
        tensors: of any listed dtype, any shape, any strides; one that is not contiguous
            or on a GPU is copied, all others are sent out of their own memory.
        asks: the sender waits for an answer.

    Raises:
        FedMPIError: a tensor that cannot travel (quantized, sparse, of 65 dimensions).
    """
    headers, inline, buffers = [], [], []
    for tensor in tensors:
        name = _NAMES.get(tensor.dtype)
        if name is None or tensor.layout != torch.strided or tensor.dim() > LARGEST_RANK:
            raise FedMPIError(
                f"a tensor of {tensor.dtype}, {tensor.layout}, {tensor.dim()} dimensions "
                "cannot be sent"
            )
        # A conjugate or negative view says of its memory that it means something else.
        raw = as_bytes(tensor.detach().resolve_conj().resolve_neg().contiguous())
        small = raw.numel() <= INLINE_BYTES
        headers.append(TensorHeader(name, list(tensor.shape), small))
        if small:
            inline.append(raw.cpu().numpy().tobytes())
        else:
            buffers.append(raw.cpu())
    note = Header(msgspec.Raw(_encoder.encode(message)), headers, b"".join(inline), asks)
    return _encoder.encode(note), buffers


def decode(note: bytes, limit: int = MEMORY) -> Header:
    """The header of a frame that has arrived, with all lengths checked.

    Args:
        note: what arrived.
        limit: most bytes that the frame's tensors may have together.

    Raises:
        ProtocolError: it is not a header, its inline bytes do not add up, or its tensors
            are beyond the limit.
    """
    try:
        header = _decoder.decode(note)
    except UNREADABLE as error:
        raise ProtocolError(
            f"a frame of {len(note)} bytes has no readable header: {reason(error)}"
        ) from None
    sizes = [t.nbytes() for t in header.tensors]
    inline = sum(n for n, t in zip(sizes, header.tensors, strict=True) if t.inline)
    if inline != len(header.inline):
        raise ProtocolError(
            f"a frame announces {inline} inline bytes but carries {len(header.inline)}"
        )
    if sum(sizes) > limit:
        raise ProtocolError(
            f"a frame announces {sum(sizes)} bytes of tensors: at most {limit} fit here"
        )
    return header


def numbered(header: bytes, number: int) -> bytes:
    """What travels: a header as `encode` makes it, behind the number of its frame."""
    return _NUMBER.pack(number) + header


def take_number(note: bytes) -> tuple[int, bytes]:
    """The number of the frame, and its header; a note too short for one is all header.

    No frame has the number 0: it stands for none.
    """
    if len(note) < _NUMBER.size:
        return 0, note
    return _NUMBER.unpack_from(note)[0], note[_NUMBER.size :]
