"""Division by a power of two: the dealer's part, and what a party does after the opening.

r is uniform on Z_2^64 and c = x + 2^62 + r is open, where |x| < 2^62. With rh = (r mod 2^63) >> f
and r63 = r >> 63, a party's share of x >> f, or of one unit more, is

    y_j = [first] (c >>> f) - [first] 2^(62-f) + v_j - c63 (w_j << (64 - f))

where v = 2^(63-f) r63 - rh and w = r63, which matters mod 2^f only: a few bytes less to send.
It never wraps, with any number of parties: unlike a division of each share by itself, which is
what CrypTen and PySyft do.
"""

from __future__ import annotations

import torch

_LOW = 2**63 - 1


def share_dtype(bits: int) -> torch.dtype:
    """Of the shares of w: the shortest that has so many bits."""
    return torch.int16 if bits <= 16 else torch.int32 if bits <= 32 else torch.int64


def deal_truncation(r: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The values v and w of which the parties need shares.

    Args:
        r: int64, the mask.
        bits: f, 1 to 61.
    """
    high = (r >> 63) & 1
    return (high << (63 - bits)) - ((r & _LOW) >> bits), high.to(share_dtype(bits))


def finish_truncation(
    c: torch.Tensor, v: torch.Tensor, w: torch.Tensor, bits: int, first: bool
) -> torch.Tensor:
    """A party's share of the quotient.

    Args:
        c: int64, opened.
        v: int64, this party's share of what the dealer dealt.
        w: likewise, of `share_dtype`.
        bits: f.
        first: whether this is the first party.
    """
    y = v - ((w.to(torch.int64) << (64 - bits)) & (c >> 63))
    if first:
        y += (c >> bits) & ((1 << (64 - bits)) - 1)
        y -= 1 << (62 - bits)
    return y
