"""Clients of one worker that train at the same time: their models stacked, one kernel for all.

A client's step of SGD on a small model is some twenty kernels, most of which take longer to be
called than to run. Here K clients take their steps together, in `bmm` and `baddbmm_` over models
that lie side by side: the calls are paid once.

A client's bits do not depend on with whom it trains. They are by definition those of a stack of
one. Before clients are stacked for batches of a size, a worker tries on random models whether each
of them comes out of the stack as it does alone; if one does not (as with several threads, among
which a product is divided by its size), they take such steps one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, islice
from math import prod
from typing import Literal

import torch
from torch import nn

from fedmpi.data.shard import Batch
from fedmpi.federated.descent import PLAIN, Descent
from fedmpi.federated.local_sgd import batch_sizes
from fedmpi.federated.training_step import StackedSteps, trained
from fedmpi.workers.building import Memory, NotStackable
from fedmpi.workers.program import Program
from fedmpi.workers.stacked import Stacked

MODELS_BYTES = 4 * 2**20
"""Of the models of a stack: more of them leave the caches, and gain nothing."""
ROWS_BYTES = 64 * 2**20
"""Of the rows that the clients of a stack hold in the order of an epoch, if they are several."""
MOST = 16
"""Clients of a stack, however small their models."""

ALIGNED = 16
"""Numbers, or rows, that fill whole cache lines: kernels may round by how their operands lie."""

Step = tuple[Stacked, torch.Tensor, torch.Tensor, torch.Tensor]


class ClientStack:
    """Models of some clients side by side, and their local SGD.

    Args:
        model: the worker's resident one, of whose parameters every stack begins.
        programs: of `record_training`.
        most: clients side by side, at least 1.
        row: an x and a y of one row, to try the programs with.
        descent: what is done with a gradient; the programs have been recorded with it.

    Raises:
        NotStackable: the programs cannot be run so.
    """

    def __init__(
        self,
        model: nn.Module,
        programs: Sequence[Program],
        most: int,
        row: Batch,
        descent: Descent = PLAIN,
    ) -> None:
        self.most = most
        self._model = [p.detach() for p in model.parameters()]
        self._programs = programs
        self._descent = descent
        self._models = [_side_by_side(most, p) for p in self._model]
        like = [p.detach() for p in trained(model)]
        self._beside = [[_side_by_side(most, p) for p in like] for _ in range(descent.kinds)]
        self._states = [*self._models, *(t for kind in self._beside for t in kind)]
        self._steps = StackedSteps(programs, self._states)
        self._rows = [torch.empty(0), torch.empty(0)]  # of x and y
        self._same: dict[tuple[int, int], bool] = {}
        if not all(p.is_floating_point() for p in self._model):
            raise NotStackable("parameters that are no real numbers")
        self._steps.check(*row)

    def groups(self, rows: Sequence[int], row_bytes: int) -> Iterator[list[int]]:
        """Who trains together: the largest clients, the next ones, and so on.

        Args:
            rows: of each client.
            row_bytes: of one row.

        Returns:
            Places in `rows`, each once, by falling rows; equal clients keep their order.
        """
        order = sorted(range(len(rows)), key=lambda k: -rows[k])
        while order:
            fit = ROWS_BYTES // max(rows[order[0]] * row_bytes, 1)
            count = max(min(self.most, fit), 1)
            yield order[:count]
            order = order[count:]

    @torch.no_grad()
    def train(
        self,
        clients: Sequence[Batch],
        seeds: Sequence[int],
        drifts: Sequence[Sequence[torch.Tensor]] = (),
        *,
        epochs: int,
        batch_size: int | None,
        smallest_batch: int,
        lr: float,
    ) -> list[float]:
        """What `local_sgd` does, for several clients, each from the resident model as it stands.

        Args:
            clients: at most `most`, their x float32 [n_k, ...] and y [n_k].
            seeds: of their orders.
            drifts: what is added to their gradients, by parameter, if the descent drifts.
            epochs: as there.
            batch_size: as there.
            smallest_batch: as there.
            lr: as there.

        Returns:
            Each client's mean loss over its rows and epochs.
        """
        for models, mine in zip(self._models, self._model, strict=True):
            models[: len(clients)].copy_(mine)
        for k in range(len(clients)):
            own = [[t[k] for t in kind] for kind in self._beside]
            self._descent.begin(own, drifts[k] if drifts else ())
        sizes = [batch_sizes(len(y), batch_size, smallest_batch) for _, y in clients]
        total = torch.zeros(len(clients), 1, dtype=torch.float64)
        x, y = self._room(clients)
        orders = [torch.Generator().manual_seed(seed) for seed in seeds]
        numbers = self._descent.numbers(-lr)
        schedule: list[Step] = []
        for _ in range(epochs):
            for k, (own_x, own_y) in enumerate(clients):
                rows = len(own_y)
                if len(sizes[k]) > 1:
                    order = torch.randperm(rows, generator=orders[k])
                    torch.index_select(own_x, 0, order, out=x[k, :rows])
                    torch.index_select(own_y, 0, order, out=y[k, :rows])
                elif not schedule:
                    x[k, :rows].copy_(own_x)
                    y[k, :rows].copy_(own_y)
            # Only now, since stacks are tried with these rows.
            schedule = schedule or list(self._schedule(sizes, x, y, total))
            for step, batch_x, batch_y, sums in schedule:
                step(batch_x, batch_y, sums, numbers)
        losses = total[:, 0].tolist()
        return [
            loss / (len(own_y) * epochs) for loss, (_, own_y) in zip(losses, clients, strict=True)
        ]

    def store(self, k: int) -> None:
        """Puts the trained model of the k-th client in the place of the resident one."""
        for mine, models in zip(self._model, self._models, strict=True):
            mine.copy_(models[k])

    def _room(self, clients: Sequence[Batch]) -> Batch:
        """Memory for the rows of an epoch: x [K, most rows, ...] and y [K, most rows]."""
        most = -(-max(len(y) for _, y in clients) // ALIGNED) * ALIGNED
        found = []
        for k, like in enumerate(clients[0]):
            shape = len(clients), most, *like.shape[1:]
            if len(self._rows[k]) < prod(shape):
                self._rows[k] = torch.empty(prod(shape), dtype=like.dtype)
            found.append(self._rows[k][: prod(shape)].view(shape))
        return found[0], found[1]

    def _schedule(
        self,
        sizes: Sequence[Sequence[int]],
        x: torch.Tensor,
        y: torch.Tensor,
        total: torch.Tensor,
    ) -> Iterator[Step]:
        """The steps of an epoch: neighbours whose next batches are of one size take it together."""
        longest = max(sizes, key=len)
        begins = accumulate(longest, initial=0)
        for position, at in enumerate(islice(begins, len(longest))):
            due = [own[position] if position < len(own) else 0 for own in sizes]
            for n, run in groupby(range(len(due)), key=due.__getitem__):
                places = list(run)
                for first, count in self._apart(places, n, x, y):
                    own, rows = slice(first, first + count), slice(at, at + n)
                    batch = x[own, rows], y[own, rows], total[own]
                    yield self._steps.ready(first, count, *batch), *batch

    def _apart(
        self, places: list[int], n: int, x: torch.Tensor, y: torch.Tensor
    ) -> list[tuple[int, int]]:
        """Neighbours that take a step of n rows, as (first, count) of those who do so together."""
        if not n:
            return []
        first, count = places[0], len(places)
        own = slice(first, first + count)
        if count == 1 or self._is_same(x[own, :n], y[own, :n]):
            return [(first, count)]
        return [(k, 1) for k in places]

    def _is_same(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether models in a stack come out as each alone, for batches x, y [K, n, ...]."""
        size = len(y), y.shape[1]
        if size not in self._same:
            self._same[size] = self._try(x, y)
        return self._same[size]

    def _try(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        count, n = y.shape
        draws = torch.Generator().manual_seed(n)
        # As far apart in memory as the clients' own rows.
        x = torch.empty_strided(x.shape, x.stride()).copy_(torch.randn(x.shape, generator=draws))
        first = [_side_by_side(count, state[0]) for state in self._states]
        alone = [_side_by_side(count, state[0]) for state in self._states]
        for together, apart in zip(first, alone, strict=True):
            together.normal_(std=1 / 32, generator=draws)
            apart.copy_(together)
        total = torch.zeros(count, 1, dtype=torch.float64)
        sums = total.clone()
        program = self._programs[n > 1]
        numbers = self._descent.numbers(-0.125)
        step = Stacked(program, first, [x, y, total], Memory())
        for _ in range(2):
            step(x, y, total, numbers)
        for k in range(count):
            own = slice(k, k + 1)
            batch = x[own], y[own], sums[own]
            step = Stacked(program, [p[own] for p in alone], batch, Memory())
            for _ in range(2):
                step(*batch, numbers)
        pairs = zip([*first, total], [*alone, sums], strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


def _side_by_side(count: int, like: torch.Tensor) -> torch.Tensor:
    """Room for so many tensors like one, each of which begins as far into a cache line."""
    width = -(-like.numel() // ALIGNED) * ALIGNED
    room = torch.empty(count, width, dtype=like.dtype)
    return room[:, : like.numel()].unflatten(1, like.shape)


def stack_size(asked: int | Literal["auto"], model_bytes: int, clients: int) -> int:
    """How many clients of a worker train at the same time.

    Args:
        asked: `compute.stack`.
        model_bytes: of one client's model.
        clients: of the worker.
    """
    fit = max(MODELS_BYTES // max(model_bytes, 1), 1)
    return min(min(fit, MOST) if asked == "auto" else asked, max(clients, 1))
