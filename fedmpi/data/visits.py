"""Clients of shards that are not a worker's own, read from the folder that all workers share."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from fedmpi.data.index import Index
from fedmpi.data.shard import Shard, open_shard

MOST_OPEN = 8
"""Other shards that are open at a time."""


class Visits:
    """The other shards of a folder, each opened when one of its clients is asked for.

    Rows are not kept: who trains a client this time may never see it again. A file's SHA-256 is
    not compared either; the worker whose shard it is has done that.

    Args:
        folder: the dataset's.
        index: its index.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder, self._index = folder, index
        self._open: OrderedDict[int, Shard] = OrderedDict()

    @property
    def possible(self) -> bool:
        """Whether shards can be read from here: the first and the last are looked for."""
        files = [self._folder / self._index.shards[k].file for k in (0, -1)]
        return all(file.is_file() for file in files)

    def shard(self, shard: int) -> Shard:
        """A shard, counted from 0, to be used before another one is asked for.

        Raises:
            DataError: the file is missing or damaged.
        """
        if shard not in self._open:
            if len(self._open) == MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            opened = open_shard(self._folder, self._index, shard, cache_mib=0, verify=False)
            self._open[shard] = opened
        self._open.move_to_end(shard)
        return self._open[shard]
