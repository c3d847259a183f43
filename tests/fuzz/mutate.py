"""Damage to bytes, drawn from a generator of one's own so that an input can be made again."""

from __future__ import annotations

import random

_STRANGE = (b"", b"\x00", b"\xff" * 8, b"\x7f" * 4, b"[" * 3000, b"\x91" * 3000, b"1e999", b"-1")


def mutated(good: bytes, drawn: random.Random) -> bytes:
    """The bytes with one to four of: bits and bytes changed, cut off, left out, put in, doubled."""
    data = bytearray(good)
    for _ in range(drawn.randint(1, 4)):
        at = drawn.randrange(len(data) + 1)
        to = min(len(data), at + drawn.choice((1, 2, 4, 8, 100)))
        match drawn.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << drawn.randrange(8)
            case 1 if at < len(data):
                data[at] = drawn.randrange(256)
            case 2:
                del data[at:]
            case 3:
                del data[at:to]
            case 4:
                data[at:at] = drawn.choice(_STRANGE)
            case 5:
                data[at:at] = data[at:to]
            case _:
                data[at:to] = drawn.randbytes(to - at)
    return bytes(data)
