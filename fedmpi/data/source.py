"""What a source is: rows and labels to train on, rows and labels held out for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import Recipe
from fedmpi.data import draws
from fedmpi.data.memory import require_memory
from fedmpi.data.rows import Array, ArrayRows, Rows, vector
from fedmpi.errors import DataError, UsageError

Task = Literal["classification", "regression"]
Split = Literal["train", "test"]

BLOCK_ROWS = 65_536
BLOCK_BYTES = 16 * 2**20
"""A block has at most so many rows, and as many fewer as the bytes demand."""


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset whose labels are in memory and whose rows are read in blocks.

    Attributes:
        name: a dataset's name, or the name of the user's file.
        row_shape: shape of a row: [features], or [channels, height, width].
        x: rows of the training file, [n, *row_shape] or [n, height, width].
        y: their labels, int64 (0 to classes - 1) or float32 [n].
        x_test: rows for evaluation; None: they are among `x`, where `held_out` is true.
        y_test: labels of `x_test`.
        held_out: bool [n]; None: `x_test` has them.
        classes: number of classes, 0 for regression.
        peak: the largest value that a uint8 pixel may have.
        columns: more columns of `x`'s file, by name, each read when asked for.
    """

    name: str
    row_shape: tuple[int, ...]
    x: Rows
    y: Array
    x_test: Rows | None
    y_test: Array | None
    held_out: NDArray[np.bool_] | None
    classes: int
    peak: int = 255
    columns: Mapping[str, Callable[[], Rows]] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 if the rows are stored so, else float32: the types that a shard has."""
        return np.dtype(np.uint8 if self.x.dtype == np.uint8 else np.float32)

    @property
    def task(self) -> Task:
        """Classification for integer labels, regression for real ones."""
        return "classification" if self.classes else "regression"

    @property
    def images(self) -> bool:
        """Whether a row is [channels, height, width]."""
        return len(self.row_shape) == 3

    @property
    def train_rows(self) -> int:
        """Number of rows to train on."""
        return len(self.labels())

    @property
    def test_rows(self) -> int:
        """Number of rows held out for evaluation."""
        return len(self.labels("test"))

    def labels(self, split: Split = "train") -> Array:
        """Labels of a split in row order, int64 or float32 [rows]."""
        if self.held_out is not None:
            return self.y[self.held_out if split == "test" else ~self.held_out]
        labels = self.y_test if split == "test" else self.y
        assert labels is not None
        return labels

    def blocks(self, split: Split, rows: int = BLOCK_ROWS) -> Iterator[tuple[Array, Array]]:
        """The rows of a split in order, with bounded memory.

        Args:
            split: "train" or "test".
            rows: read at most so many rows of the file at once.

        Yields:
            x of `dtype` [b, *row_shape] and y int64 or float32 [b], b at least 1.

        Raises:
            DataError: the file is damaged, or a value is not a finite number.
        """
        table, labels, wanted = self.x, self.y, self.held_out
        if wanted is None:
            if split == "test":
                assert self.x_test is not None
                table, labels = self.x_test, self.labels("test")
            wanted = np.ones(len(labels), bool)
        elif split == "train":
            wanted = ~wanted
        row_bytes = math.prod(self.row_shape) * max(table.dtype.itemsize, self.dtype.itemsize)
        start = 0
        for block in table.blocks(max(1, min(rows, BLOCK_BYTES // max(1, row_bytes)))):
            stop = start + len(block)
            keep = wanted[start:stop]
            x = self._convert(block, start, "x" if table is self.x else "x_test")
            if keep.all():
                yield x, labels[start:stop]
            elif keep.any():
                yield x[keep], labels[start:stop][keep]
            start = stop

    def _convert(self, block: Array, start: int, name: str) -> Array:
        with np.errstate(over="ignore"):  # what overflows float32 is found as infinite below
            x = block.astype(self.dtype, copy=False).reshape(len(block), *self.row_shape)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            row = start + int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))
            raise DataError(
                f"{self.name}: {name}[{row}] holds NaN, infinity or a value beyond float32: "
                "remove the row or fill in the value"
            )
        return x

    def column(self, name: str) -> Array:
        """A column of the training rows, integers or strings [train_rows].

        Args:
            name: one of `columns`, or "y" for the labels of a classification.

        Raises:
            UsageError: there is no such column.
            DataError: it has another number of rows than `x`, or real numbers, or is damaged.
        """
        known = dict(self.columns)
        if self.classes:
            known["y"] = lambda: ArrayRows(self.y)
        if name not in known:
            raise UsageError(
                f"by = {name!r}: {self.name} has no such column; "
                f"it has {', '.join(sorted(known)) or 'none'}"
            )
        rows = known[name]()
        if rows.shape != (len(self.y),) or rows.dtype.kind not in "iubUS":
            raise DataError(
                f"{self.name}: column {name} is {rows.dtype} {list(rows.shape)}: "
                f"expected integers or strings [{len(self.y)}]"
            )
        values = vector(rows, f"{self.name}: column {name}")
        return values if self.held_out is None else values[~self.held_out]


def make_source(
    recipe: Recipe,
    name: str,
    x: Rows,
    y: Rows,
    x_test: Rows | None = None,
    y_test: Rows | None = None,
    *,
    peak: int = 255,
    columns: Mapping[str, Callable[[], Rows]] | None = None,
) -> Source:
    """Checks rows and labels and, without a test set, draws the rows that are held out.

    Nothing is read before all shapes and types fit: a small file may claim any size.

    Args:
        recipe: test_fraction and partition_seed draw the held-out rows.
        name: for messages and the index.
        x: training rows; uint8 [n, height, width] counts as images of one channel.
        y: their labels [n]; integers: classification, real numbers: regression.
        x_test: rows for evaluation, or None.
        y_test: their labels.
        peak: the largest value that a uint8 pixel may have.
        columns: further columns by name.

    Raises:
        DataError: shapes or types do not fit, neither in memory, or a label is out of range or
            NaN.
    """
    tables = [("x", x, "y", y)]
    if x_test is not None and y_test is not None:
        tables.append(("x_test", x_test, "y_test", y_test))
    elif x_test is not None or y_test is not None:
        missing = "x_test needs y_test" if y_test is None else "y_test needs x_test"
        raise DataError(f"{name}: {missing}")
    for what, rows, what_labels, its_labels in tables:
        _check_shapes(name, what, rows, what_labels, its_labels)
        if rows.shape[1:] != x.shape[1:] or (rows.dtype == np.uint8) != (x.dtype == np.uint8):
            raise DataError(
                f"{name}: a row of x_test is {rows.dtype} {list(rows.shape[1:])} but one of x is "
                f"{x.dtype} {list(x.shape[1:])}"
            )
        if (its_labels.dtype.kind == "f") != (y.dtype.kind == "f"):
            raise DataError(f"{name}: y is {y.dtype} but y_test is {its_labels.dtype}")
    labels, classes = _check_labels(
        name, {what: vector(rows, f"{name}: {what}") for _, _, what, rows in tables}
    )
    row_shape = tuple(x.shape[1:])
    if x.dtype == np.uint8 and len(row_shape) == 2:
        row_shape = (1, *row_shape)
    return Source(
        name=name,
        row_shape=row_shape,
        x=x,
        y=labels[0],
        x_test=x_test,
        y_test=labels[1] if x_test is not None else None,
        held_out=_draw_held_out(recipe, name, len(labels[0])) if x_test is None else None,
        classes=classes,
        peak=peak,
        columns=columns or {},
    )


def _draw_held_out(recipe: Recipe, name: str, rows: int) -> NDArray[np.bool_]:
    if rows < 2:
        raise DataError(f"{name} has {rows} row: expected at least 2, to hold one out")
    count = min(max(round(rows * recipe.test_fraction), 1), rows - 1)
    held_out = np.zeros(rows, bool)
    rng = draws.generator(recipe.partition_seed, draws.HELD_OUT)
    held_out[rng.permutation(rows)[:count]] = True
    return held_out


def _check_shapes(name: str, what: str, rows: Rows, what_labels: str, labels: Rows) -> None:
    """Whether rows and their labels can be what they have to be, as far as headers tell."""
    if len(labels.shape) != 1 or labels.dtype.kind not in "uifb":
        raise DataError(
            f"{name}: {what_labels} is {labels.dtype} {list(labels.shape)}: expected integers "
            "(classes) or real numbers (targets) [rows]"
        )
    if rows.dtype.kind not in "uifb" or len(rows.shape) < 2 or 0 in rows.shape:
        raise DataError(
            f"{name}: {what} is {rows.dtype} {list(rows.shape)}: expected numbers "
            "[rows, features] or [rows, channels, height, width]"
        )
    if rows.shape[0] != labels.shape[0]:
        raise DataError(
            f"{name}: {what} has {rows.shape[0]} rows but its labels have {labels.shape[0]}"
        )
    # A block has one row at least, as it is stored and as it is used.
    row_bytes = math.prod(rows.shape[1:]) * (rows.dtype.itemsize + np.dtype(np.float32).itemsize)
    require_memory(2 * row_bytes, f"{name}: a row of {what}")


def _check_labels(name: str, given: dict[str, Array]) -> tuple[list[Array], int]:
    """The labels as int64 or float32 and the number of classes, 0 for regression."""
    y = given["y"]
    if y.dtype.kind == "f":
        return [_real_labels(name, what, labels) for what, labels in given.items()], 0
    for what, labels in given.items():
        if len(labels) and labels.min() < 0:
            row = int(np.argmax(labels < 0))
            raise DataError(f"{name}: {what}[{row}] is {labels[row]}: expected labels from 0 up")
    seen = np.unique(np.concatenate(list(given.values())))
    missing = np.flatnonzero(seen != np.arange(len(seen)))
    if len(missing):
        raise DataError(
            f"{name}: the labels go up to {seen[-1]} but no row has label {missing[0]}: "
            "number the classes 0, 1, 2, ... without a gap"
        )
    return [labels.astype(np.int64, copy=False) for labels in given.values()], len(seen)


def _real_labels(name: str, what: str, labels: Array) -> Array:
    with np.errstate(over="ignore"):
        labels = labels.astype(np.float32, copy=False)
    finite = np.isfinite(labels)
    if not finite.all():
        raise DataError(
            f"{name}: {what}[{int(np.argmin(finite))}] is NaN, infinite or beyond float32: "
            "remove the row"
        )
    return labels
