"""What every system trains: workloads, clients' rows and cohorts (NumPy only).

The training rows are permuted once and cut into clients. Rows stay on the disk as bytes; a
client's become float32 in 0..1 when it trains for the first time, and are kept.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

WORKERS = 2
"""Processes that train, in every system."""
BATCH = 10
"""B: rows of a step of SGD. E, the epochs of a client in a round, is 1."""
SEED = 0


class Workload(NamedTuple):
    """Attributes:
    model: 2nn, cnn (McMahan et al. 2017) or softmax.
    clients: that the training rows are cut into.
    cohort: clients of a round.
    rounds: of a run.
    lr: of the clients' SGD.
    eval_every: rounds from one evaluation on the held-out rows to the next; the last has one too.
    """

    model: str
    clients: int
    cohort: int
    rounds: int
    lr: float
    eval_every: int


WORKLOADS = {
    "W1": Workload("2nn", clients=100, cohort=10, rounds=20, lr=0.1, eval_every=5),
    "W2": Workload("cnn", clients=100, cohort=10, rounds=5, lr=0.1, eval_every=5),
    "W3": Workload("2nn", clients=100, cohort=100, rounds=5, lr=0.1, eval_every=5),
    # Dimitriadis et al. 2022 (FLUTE) compare themselves with FedML on this one.
    "W4": Workload("softmax", clients=1000, cohort=10, rounds=100, lr=0.03, eval_every=20),
}


class Clients:
    """The clients of a workload, and the held-out rows.

    Args:
        folder: with the four IDX files of MNIST, gzipped or not.
        clients: to cut the training rows into.
    """

    def __init__(self, folder: Path, clients: int) -> None:
        self._folder = folder
        self._x = read_idx(folder, "train-images-idx3-ubyte")
        self._y = read_idx(folder, "train-labels-idx1-ubyte")
        order = np.random.RandomState(SEED).permutation(len(self._x))
        self._rows = [np.sort(part) for part in np.array_split(order, clients)]
        self._kept: dict[int, tuple[Array, Array]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, client: int) -> int:
        return len(self._rows[client])

    def load(self, client: int) -> tuple[Array, Array]:
        """A client's images, float32 [n, 784], and labels, int64 [n]."""
        if client not in self._kept:
            rows = self._rows[client]
            self._kept[client] = _ready(self._x[rows], self._y[rows])
        return self._kept[client]

    def held_out(self) -> tuple[Array, Array]:
        x = read_idx(self._folder, "t10k-images-idx3-ubyte")
        return _ready(x, read_idx(self._folder, "t10k-labels-idx1-ubyte"))


def cohort_of(number: int, work: Workload) -> list[int]:
    """The clients of round `number`, for systems that let their caller choose."""
    if work.cohort == work.clients:
        return list(range(work.clients))
    random = np.random.RandomState(1000 + number)
    return [int(c) for c in random.choice(work.clients, work.cohort, replace=False)]


def read_idx(folder: Path, stem: str) -> Array:
    """The array in `stem` or `stem.gz`, uint8; of a plain file, mapped into memory."""
    plain, packed = folder / stem, folder / f"{stem}.gz"
    if plain.exists():
        found: Array = np.memmap(plain, np.uint8, "r")
    else:
        found = np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8)
    dimensions = int(found[3])
    shape = found[4 : 4 + 4 * dimensions].view(">u4").astype(int)
    return found[4 + 4 * dimensions :].reshape(shape)


def write_idx(folder: Path, stem: str, rows: Array) -> None:
    """Writes what `read_idx` reads."""
    header = bytes([0, 0, 8, rows.ndim]) + np.array(rows.shape, ">u4").tobytes()
    (folder / stem).write_bytes(header + np.ascontiguousarray(rows, np.uint8).tobytes())


def _ready(x: Array, y: Array) -> tuple[Array, Array]:
    return x.reshape(len(x), -1).astype(np.float32) / np.float32(255), y.astype(np.int64)
