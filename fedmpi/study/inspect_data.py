"""What prepared shards hold: rows, clients and labels of each worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmpi.data.index import Index, read_index
from fedmpi.study import plot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COUNTED_LABELS = 10
"""More labels than this are summed up: a column for each would not fit a terminal."""


def inspect(folder: str | Path, console: Console) -> Path:
    """Prints what each worker's shard holds and draws labels.png in the folder.

    Returns:
        The plot's path.

    Raises:
        DataError: the folder holds no prepared shards, or its index is damaged.
    """
    index = read_index(folder)
    task = f"{index.classes} classes" if index.classes else index.task
    console.print(
        f"{index.source}: {task}, {index.dtype} rows of shape {list(index.row_shape)}, "
        f"partition {index.recipe.partition}",
        highlight=False,
        markup=False,
    )
    console.print(_shards_table(index))
    counts = np.array([shard.label_counts or (shard.rows,) for shard in index.shards])
    path = Path(folder) / "labels.png"
    plot.labels(counts, [s.clients for s in index.shards], path, index.source)
    return path


def _shards_table(index: Index) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    for name in ("worker", "clients", "rows", *_label_headings(index.classes)):
        table.add_column(name, justify="right")
    for rank, shard in enumerate(index.shards, start=1):
        labels = _label_cells(shard.label_counts, index.classes)
        table.add_row(str(rank), str(shard.clients), str(shard.rows), *labels)
    table.add_section()
    totals = [sum(column) for column in zip(*(s.label_counts for s in index.shards), strict=True)]
    labels = _label_cells(totals, index.classes)
    table.add_row("all", str(index.clients), str(index.rows), *labels)
    table.add_row("test", "", str(index.test.rows))
    return table


def _label_headings(classes: int) -> list[str]:
    if classes <= COUNTED_LABELS:
        return [str(label) for label in range(classes)]
    return ["labels", "most frequent"]


def _label_cells(counts: Sequence[int], classes: int) -> list[str]:
    """Rows of each label; of many labels, how many occur and which leads with what share."""
    if classes <= COUNTED_LABELS:
        return [str(count) for count in counts]
    most = max(range(classes), key=counts.__getitem__)
    share = 100 * counts[most] / max(sum(counts), 1)
    return [str(sum(count > 0 for count in counts)), f"{most} ({share:.0f} %)"]
