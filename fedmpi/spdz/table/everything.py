"""The table of secure operators: the files that fill it, each with the operators of one kind."""

from __future__ import annotations

import fedmpi.spdz.table.activations
import fedmpi.spdz.table.arithmetic
import fedmpi.spdz.table.choices
import fedmpi.spdz.table.convolutions
import fedmpi.spdz.table.exponentials
import fedmpi.spdz.table.extremes
import fedmpi.spdz.table.folding
import fedmpi.spdz.table.functions
import fedmpi.spdz.table.indexing
import fedmpi.spdz.table.linear
import fedmpi.spdz.table.losses
import fedmpi.spdz.table.normalisation
import fedmpi.spdz.table.pooling
import fedmpi.spdz.table.positions
import fedmpi.spdz.table.powers
import fedmpi.spdz.table.products_along
import fedmpi.spdz.table.roots
import fedmpi.spdz.table.softmax  # noqa: F401
