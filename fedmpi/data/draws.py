"""The random draws of a preparation, each from its own stream of `partition_seed`."""

from __future__ import annotations

import numpy as np

HELD_OUT = 1
"""Stream of the rows that are held out for evaluation."""
CLIENTS = 2
"""Stream of the split into clients."""


def generator(seed: int, stream: int) -> np.random.Generator:
    """The generator of one stream: the same on every rank, whatever else was drawn."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
