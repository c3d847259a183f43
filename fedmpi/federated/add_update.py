"""One pass over an update: check it and add it to the exact sum, compiled by numba.

What `fixed_point` does with PyTorch in several passes, for float32 and float64 on the CPU and
with the same bits: every value is read once and every sum written once. Imported only by a
process that adds much, since numba takes half a second to import and to load what it compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fedmpi.federated.fixed_point import LIMIT

BLOCK = 2048
"""Values that are checked together: they are still in the first cache when they are added."""

_SHIFT = 1.5 * 2.0**52  # see fixed_point
_SHIFT_BITS = 0x4338 << 48


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, which numba keeps for the next start.

    It lies in `__pycache__`, in an installation that cannot be written to in the user's cache
    folder, or in `NUMBA_CACHE_DIR`. Ranks may start at once: numba renames whole files.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to write to: compiled at every start, which takes a second
        return numba.njit(nogil=True)(function)


@compiled
def add_update(total: Any, local: Any, start: Any, scale: float, bound: float) -> bool:
    """Adds round(scale * (local - start)) to the total, ties to even; all of it or nothing.

    Args:
        total: int64 [n], changed in place.
        local: float32 or float64 [n].
        start: as `local`.
        scale: of at most 2^40; negative to take an update back.
        bound: of the dtype of `local`, at most LIMIT: differences below it are less than 2^51
            when they are scaled.

    Returns:
        False if a value is NaN or moved by LIMIT or more: the total is then unchanged.
    """
    for first in range(0, len(total), BLOCK):
        sums = total[first : first + BLOCK]
        mine, its_start = local[first : first + BLOCK], start[first : first + BLOCK]
        if _all_below(mine, its_start, bound):
            _add_small(sums, mine, its_start, scale)
        elif not _add_any(sums, mine, its_start, scale):
            if first:  # what was added before this block
                add_update(total[:first], local[:first], start[:first], -scale, bound)
            return False
    return True


@compiled
def _all_below(local: Any, start: Any, bound: float) -> bool:
    """Whether no value moved by the bound or more, or is NaN."""
    beyond = np.int32(0)  # not a flag, with which LLVM would not use vectors
    for i in range(len(local)):
        beyond |= np.int32(not (abs(local[i] - start[i]) < bound))
    return beyond == 0


@compiled
def _add_small(total: Any, local: Any, start: Any, scale: float) -> None:
    for i in range(len(total)):
        real = np.float64(local[i] - start[i]) * scale
        total[i] += np.float64(real + _SHIFT).view(np.int64) - _SHIFT_BITS


@compiled
def _add_any(total: Any, local: Any, start: Any, scale: float) -> bool:
    for i in range(len(total)):
        # A constant of the model may be infinite, as a mask's are: it has not moved.
        if not (local[i] == start[i] or abs(local[i] - start[i]) < LIMIT):
            return False
    for i in range(len(total)):
        if local[i] != start[i]:
            total[i] += np.int64(np.rint(np.float64(local[i] - start[i]) * scale))
    return True
