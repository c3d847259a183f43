"""Keyed streams of uniform words: AES-128-CTR, written straight into a tensor's memory.

Two ranks that hold the same key draw the same words without a message. The cipher's counter block
is the operation number t (upper 64 bits) and the block's offset within it (lower 64 bits), so that
no two operations share a block: t < 2^64 operations of 2^68 bytes each. A stream cipher from a kept
library, never `torch.Generator`, whose output can be predicted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from fedmpi.comm.frame import ProtocolError

KEY_BYTES = 16
_PIECE = 1 << 18
"""Bytes ciphered at a time: zeros and result then stay in the cache."""
_ZEROS = memoryview(bytes(_PIECE))


def new_key() -> bytes:
    """A fresh key from the operating system's randomness."""
    return secrets.token_bytes(KEY_BYTES)


class Stream:
    """Uniform words, a function of (key, operation number t, position) alone.

    Draws with the same t continue one another, in bytes. A larger t starts at the beginning of its
    own words. t never falls: going back would deal the same randomness twice, which gives away what
    it masks. Not for two threads at once.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._t = 0
        # One context for good: resetting its counter takes a tenth of making another.
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(
        self, t: int, shape: Sequence[int] | int, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """A CPU tensor of an integer dtype, uniform over all of its values."""
        return self.fill(t, torch.empty(shape, dtype=dtype, device="cpu"))

    def fill(self, t: int, out: Tensor) -> Tensor:
        """Overwrite a contiguous CPU tensor of an integer dtype with the next words of t."""
        if out.dtype.is_floating_point or out.dtype.is_complex or out.dtype == torch.bool:
            raise TypeError(f"uniform over all values of {out.dtype}: only integers are")
        if not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError("a stream fills contiguous tensors in the CPU's memory")
        if t != self._t:
            if not self._t < t < 1 << 64:
                raise ProtocolError(f"operation {t} after {self._t}: numbers rise and fit 64 bits")
            self._t = t
            self._cipher.reset_nonce(t.to_bytes(8, "big") + bytes(8))
        if out.numel() == 0:
            return out
        memory = out.numpy().reshape(-1).view(np.uint8).data
        for start in range(0, len(memory), _PIECE):
            piece = memory[start : start + _PIECE]
            self._cipher.update_into(_ZEROS[: len(piece)], piece)
        return out
