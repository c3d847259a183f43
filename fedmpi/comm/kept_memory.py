"""Memory that a rank keeps for its next tensors instead of giving it back to the system.

A secure computation makes large tensors all the time and drops them soon. By default glibc maps
each of them anew, and writing 8 MB for the first time costs 2,000 page faults: 2.7 ms, where the
subtraction that does so takes 0.4.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 256 * 2**20
"""A tensor up to this size lies in memory that is kept; so much of it at most while unused."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""


def keep_memory() -> None:
    """From here on in this process. A wish: another C library does as it always does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, KEPT_BYTES)
