"""Division by a power of two: the dealer's part, and what a party does after the opening.

r is uniform on Z_2^64 and c = x + 2^62 + r is open, where |x| < 2^62. With rh = (r mod 2^63) >> f
and r63 = r >> 63, a party's share of x >> f, or of one unit more, is

    y_j = [first] (c >>> f) - [first] 2^(62-f) + v_j - c63 (w_j << (64 - f))

where v = 2^(63-f) r63 - rh and w = r63, which matters mod 2^f only: a few bytes less to send.
It never wraps, with any number of parties: unlike a division of each share by itself, which is
what CrypTen and PySyft do.
"""

from __future__ import annotations

import numpy as np
import torch

from fedmpi.spdz.protocols.flat import all_bits, flat

_LOW = 2**63 - 1


def share_dtype(bits: int) -> torch.dtype:
    """Of the shares of w: the shorter one that has so many bits."""
    return torch.int16 if bits <= 16 else torch.int64


def truncation_parts(r: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The values v and w of which the parties have shares."""
    high = (r >> 63) & 1
    return (high << (63 - bits)) - ((r & _LOW) >> bits), high.to(share_dtype(bits))


def deal_truncation(r: torch.Tensor, bits: int, v: torch.Tensor, w: torch.Tensor) -> None:
    """What the last party needs, so that the parties have shares of v and w.

    Args:
        r: int64, the mask.
        bits: f, 1 to 61.
        v: int64, the sum of the other parties' shares; becomes the last one's.
        w: likewise, of `share_dtype`.
    """
    from fedmpi.spdz.protocols import share_kernels

    share_kernels.deal_truncation(flat(r), np.uint64(bits), flat(v), flat(w))


def finish_truncation(
    c: torch.Tensor, v: torch.Tensor, w: torch.Tensor, bits: int, first: bool
) -> torch.Tensor:
    """A party's share of the quotient.

    Args:
        c: int64, as it was opened; loses the 2^62.
        v: int64, this party's share of what the dealer dealt; becomes the result.
        w: likewise, of `share_dtype`.
        bits: f.
        first: whether this is the first party.
    """
    from fedmpi.spdz.protocols import share_kernels

    share_kernels.finish_truncation(flat(c), flat(v), flat(w), np.uint64(bits), all_bits(first))
    return v
