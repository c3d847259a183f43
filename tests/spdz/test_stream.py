from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedmpi.comm.frame import ProtocolError
from fedmpi.spdz.stream import Stream, new_key

KEY = bytes(range(16))


def counter_mode(t: int, count: int) -> bytes:
    """AES of the counter blocks (t, 0), (t, 1), ..., one by one."""
    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    blocks = (t.to_bytes(8, "big") + i.to_bytes(8, "big") for i in range(-(-count // 16)))
    return b"".join(map(block.update, blocks))[:count]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1001, 32768, 32769, 100_000])
def test_words_are_those_of_the_counter(n: int) -> None:
    words = Stream(KEY).uniform(5, n)
    assert words.numpy().tobytes() == counter_mode(5, 8 * n)


def test_draws_of_an_operation_continue() -> None:
    stream = Stream(KEY)
    drawn = [stream.uniform(2, (3, 5)), stream.uniform(2, 7, torch.uint8), stream.uniform(2, ())]
    assert b"".join(d.numpy().tobytes() for d in drawn) == counter_mode(2, 8 * 15 + 7 + 8)
    assert stream.uniform(3, 4).numpy().tobytes() == counter_mode(3, 32)


def test_the_first_and_the_last_operation() -> None:
    stream = Stream(KEY)
    assert stream.uniform(0, 2).numpy().tobytes() == counter_mode(0, 16)
    assert stream.uniform(2**64 - 1, 2).numpy().tobytes() == counter_mode(2**64 - 1, 16)
    with pytest.raises(ProtocolError, match="64 bits"):
        stream.uniform(2**64, 2)


def test_an_operation_does_not_come_again() -> None:
    stream = Stream(KEY)
    stream.uniform(4, 1)
    with pytest.raises(ProtocolError, match="operation 3 after 4"):
        stream.uniform(3, 1)


def test_keys() -> None:
    assert len(new_key()) == 16
    assert new_key() != new_key()
    assert not torch.equal(Stream(new_key()).uniform(1, 9), Stream(new_key()).uniform(1, 9))
    with pytest.raises(ValueError, match="16 bytes"):
        Stream(b"short")


def test_what_cannot_be_filled() -> None:
    stream = Stream(KEY)
    with pytest.raises(TypeError, match="float32"):
        stream.uniform(1, 3, torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        stream.fill(1, torch.empty(4, 4, dtype=torch.int64).t())


def test_all_bits_are_set_half_of_the_time() -> None:
    words = Stream(KEY).uniform(1, 10_000)
    for i in range(64):
        assert 0.46 < (words >> i & 1).double().mean() < 0.54
