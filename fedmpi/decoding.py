"""Messages and files as the types that they must be, from any thread.

msgspec learns a type when it first decodes one, and keeps what it has learnt on the class, step by
step. Another thread that decodes the same class meanwhile meets half of it and crashes the process
(seen with msgspec 0.22, workers being threads). So types are learnt under one lock.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_learning = threading.Lock()


def msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """The decoder of a type, a union among them; made once."""
    with _learning:
        return _msgpack(kind)


def from_msgpack(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decodes msgpack; raises what msgspec does."""
    decoded: T = msgpack_decoder(kind).decode(data)
    return decoded


def from_json(data: bytes, kind: type[T]) -> T:
    """Decodes JSON; raises what msgspec does."""
    learnt: Any = kind
    with _learning:
        decoder = _json(learnt)
    decoded: T = decoder.decode(data)
    return decoded


def converted(tree: Any, kind: type[T]) -> T:
    """Converts what TOML or JSON gave; raises what msgspec does."""
    with _learning:
        return msgspec.convert(tree, kind)


@cache
def _msgpack(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


@cache
def _json(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
