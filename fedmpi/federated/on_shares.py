"""Where a training takes place: on shares that the parties hold, or here in the clear."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedmpi.errors import UsageError
from fedmpi.spdz.rows import mask, rows
from fedmpi.spdz.sharing import share
from fedmpi.spdz.traffic import Traffic, traffic
from fedmpi.tensors.plan import Plan
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.tensors.shards import load_shards
from fedmpi.tensors.shared import SharedTensor

T = TypeVar("T")


class OnShares:
    """The parties hold shares of rows, labels and model.

    The rows are private to their workers: these give nothing to the owner that comes of them but
    the results of the plans that they accept, see `disclosed`.

    Args:
        workers: all, each with a shard.
        parties: those of them that hold the shares.
        bits: fractional bits.
    """

    def __init__(
        self, workers: Sequence[RemoteWorker], parties: Sequence[RemoteWorker], bits: int
    ) -> None:
        self.workers = workers
        self.parties = parties
        self.bits = bits

    def train_rows(self, folder: str | Path, classes: int, verify: bool) -> tuple[Tensor, Tensor]:
        """All workers' rows [n, ...] and one-hot labels [n, classes], or targets [n]."""
        shards = load_shards(self.workers, folder, private=True, verify=verify)
        labels: list[Tensor] = [shard.y for shard in shards]
        if classes:
            labels = [
                (y.unsqueeze(1) == worker.send(torch.arange(classes))).float()
                for worker, y in zip(self.workers, labels, strict=True)
            ]
        x = share([shard.x for shard in shards], *self.parties, bits=self.bits)
        mask(x)
        return x, share(labels, *self.parties, bits=self.bits)

    def share(self, what: T) -> T:
        """The owner's own tensor or module, shared."""
        return cast(T, share(cast(Tensor, what), *self.parties, bits=self.bits))

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        """Some rows, as a batch; everybody knows which."""
        return rows(cast(SharedTensor, x), positions)

    def plan(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function as one command to all parties."""
        return Plan(function)

    def disclosed(self, function: Callable[..., T]) -> Callable[..., T]:
        """As `plan`; the parties accept that the owner learns the results, which are here."""
        return Disclosed(function, self.parties)

    def wait(self) -> None:
        """Until the parties have done all; raises what has failed there."""
        for party in self.parties:
            party.wait()

    def traffic(self) -> list[Traffic]:
        """By operator, so far."""
        return traffic(*self.parties)


class InTheClear:
    """The same on the owner, with the workers' rows, for comparison.

    Args:
        workers: each with a shard.
    """

    def __init__(self, workers: Sequence[RemoteWorker]) -> None:
        self.workers = workers

    def train_rows(self, folder: str | Path, classes: int, verify: bool) -> tuple[Tensor, Tensor]:
        """As `OnShares.train_rows`."""
        shards = load_shards(self.workers, folder, verify=verify)
        y = torch.cat([shard.y.get() for shard in shards])
        if classes:
            y = (y.unsqueeze(1) == torch.arange(classes)).float()
        return torch.cat([shard.x.get() for shard in shards]), y

    def share(self, what: T) -> T:
        """A copy."""
        return copy.deepcopy(what)

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        """A batch."""
        return x[positions]

    def plan(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function as it is."""
        return function

    def disclosed(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function as it is."""
        return function

    def wait(self) -> None:
        """Nothing to wait for."""

    def traffic(self) -> list[Traffic]:
        """None."""
        return []


class Disclosed:
    """A plan whose results the parties give to the owner, even if they come of private rows.

    Args:
        function: returns tensors that it has made, in lists or alone.
        parties: who accept it.
    """

    def __init__(self, function: Callable[..., Any], parties: Sequence[RemoteWorker]) -> None:
        self._plan = Plan(function)
        self._parties = parties
        self._accepted: set[int] = set()

    def __call__(self, *arguments: Any) -> Any:
        recorded = self._plan.record(*arguments)
        if recorded.number not in self._accepted:
            self._accepted.add(recorded.number)
            for party in self._parties:
                party.accept(recorded)
        return tree_map(lambda t: t.reveal(), self._plan(*arguments))


def parties_among(workers: Sequence[RemoteWorker], ranks: Sequence[int]) -> list[RemoteWorker]:
    """The workers of these ranks, in their order; all, if none is named.

    Raises:
        UsageError: a rank is no worker's, or one worker is all there are.
    """
    by_rank = {worker.rank: worker for worker in workers}
    missing = [rank for rank in ranks if rank not in by_rank]
    if missing:
        raise UsageError(
            f"parties = {list(ranks)}: there is no worker on rank {missing[0]}, the workers have "
            f"the ranks 1 to {len(workers)}"
        )
    found = [by_rank[rank] for rank in ranks] or list(workers)
    if len(found) < 2:
        raise UsageError(
            "mode = 'encrypted' with 1 worker: what is shared needs at least 2 parties; run with "
            "mpirun -n 3, or in one process with --workers 2"
        )
    return found


def values_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Writes a state that was revealed into the owner's model."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(values[name])
