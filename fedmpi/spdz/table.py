"""The table of secure operators: the files that fill it, each with the operators of one kind."""

from __future__ import annotations

import fedmpi.spdz.activations
import fedmpi.spdz.arithmetic
import fedmpi.spdz.choices
import fedmpi.spdz.convolutions
import fedmpi.spdz.exponentials
import fedmpi.spdz.extremes
import fedmpi.spdz.folding
import fedmpi.spdz.functions
import fedmpi.spdz.indexing
import fedmpi.spdz.linear
import fedmpi.spdz.losses
import fedmpi.spdz.normalisation
import fedmpi.spdz.pooling
import fedmpi.spdz.positions
import fedmpi.spdz.powers
import fedmpi.spdz.products_along
import fedmpi.spdz.roots
import fedmpi.spdz.softmax  # noqa: F401
