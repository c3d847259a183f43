"""alpha and beta of the cost model, fitted to what `bench` has measured.

Times of messages reach from microseconds to seconds, so errors count relative to what was measured:
minimise the sum of ((alpha m + beta n - t) / t)^2 over alpha, beta >= 0 (Lawson and Hanson 1974,
"Solving least squares problems", chapter 23, by way of SciPy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from scipy.optimize import nnls

from fedmpi.data.files import reason
from fedmpi.decoding import from_json
from fedmpi.errors import DataError
from fedmpi.study.cost_model import Link, Machine, terms

NEEDED = {
    ("exchange", "mpi"),
    ("broadcast", "fedmpi"),
    ("broadcast", "star"),
    ("sum", "fedmpi"),
    ("sum", "star"),
}
"""What a file of measurements has to hold."""


class Line(msgspec.Struct, frozen=True):
    """A line of comm-N.json that counts here, see `bench_comm.Line`."""

    what: str
    how: str
    nbytes: int
    seconds: float


class Comm(msgspec.Struct, frozen=True):
    """What `fedmpi bench comm` has written."""

    library: str
    ranks: int
    cores: int
    chunk_bytes: int
    lines: list[Line]


@dataclass(frozen=True)
class Fit:
    """A fitted cost of n chunks or bytes.

    Attributes:
        link: what was fitted.
        typical: median of |predicted / measured - 1|.
        worst: the largest of them.
    """

    link: Link
    typical: float
    worst: float


def fit(factors: Sequence[tuple[float, float]], seconds: Sequence[float]) -> Fit:
    """Fits alpha and beta.

    Args:
        factors: m and n of each measurement.
        seconds: that it took, above 0.
    """
    scaled = np.array(factors) / np.array(seconds)[:, None]
    # Bytes by the million, messages by the one: the columns have to be of similar length.
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0] = 1.0
    found, _ = nnls(scaled / norms, np.ones(len(seconds)))
    alpha, beta = found / norms
    errors = np.abs(scaled @ np.array([alpha, beta]) - 1)
    return Fit(Link(float(alpha), float(beta)), float(np.median(errors)), float(errors.max()))


def fit_messages(comm: Comm, how: str = "fedmpi") -> Fit:
    """Of single messages: FedMPI's frames, or plain Send and Recv (`how` "mpi")."""
    lines = [k for k in comm.lines if k.what == "exchange" and k.how == how]
    return fit([(1, k.nbytes) for k in lines], [k.seconds for k in lines])


def fit_collective(comm: Comm, what: str) -> Fit:
    """Of a "broadcast" or a "sum", tree and star together, by the terms of the cost model."""
    machine = Machine(comm.ranks, 1, comm.cores)
    lines = [k for k in comm.lines if k.what == what and k.how in ("fedmpi", "star")]
    factors = [
        terms(k.nbytes, comm.chunk_bytes, "tree" if k.how == "fedmpi" else "star", machine)
        for k in lines
    ]
    return fit(factors, [k.seconds for k in lines])


def read_comm(path: Path) -> Comm:
    """Reads comm-N.json.

    Raises:
        DataError: it cannot be read, or is not what `bench comm` writes.
    """
    try:
        comm = from_json(path.read_bytes(), Comm)
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from None
    except msgspec.MsgspecError as error:
        raise DataError(
            f"{path} is not what fedmpi bench comm writes ({error}): measure again"
        ) from None
    found = {(k.what, k.how) for k in comm.lines}
    if (
        not NEEDED <= found
        or any(k.seconds <= 0 or k.nbytes < 0 for k in comm.lines)
        or min(comm.ranks - 1, comm.cores, comm.chunk_bytes) < 1
    ):
        raise DataError(f"{path} lacks measurements that are needed: run bench comm again")
    return comm
