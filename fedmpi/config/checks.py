"""How a value is refused: one sentence with the key, the value and what is expected."""

from __future__ import annotations

import difflib
from typing import get_args

from fedmpi.errors import UsageError


def nearest(word: str, words: object) -> str:
    """`" (did you mean 'x'?)"` for the word of `words` nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.5)  # type: ignore[attr-defined]
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuses a value: `batch_size = 0: expected at least 1, or "full"`."""
    if not condition:
        raise UsageError(f"{key} = {value!r}: expected {expected}")


def require_choice(key: str, value: object, annotation: object) -> None:
    """Refuses a value that is not among the choices of a `Literal`, naming the nearest."""
    choices = get_args(annotation)
    if value not in choices:  # the nearest takes a while to find: every worker checks every option
        expected = "one of " + ", ".join(map(str, choices)) + nearest(str(value), choices)
        require(False, key, value, expected)
