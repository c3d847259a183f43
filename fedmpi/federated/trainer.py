"""The worker's side of a round: its clients, one resident model, and one sum."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from math import isfinite

import msgspec
import torch

from fedmpi import models
from fedmpi.config import Config
from fedmpi.data.shard import Shard
from fedmpi.errors import UsageError
from fedmpi.federated.evaluate import batches, evaluate
from fedmpi.federated.fixed_point import ExactSum, unusable
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.local_sgd import local_sgd
from fedmpi.federated.seeds import derive
from fedmpi.federated.training_step import TrainingStep
from fedmpi.workers.program import Program

LOSS_UNIT = 2.0**20
"""Losses are summed as integers, this many to one, so that their mean has the same bits too."""

# In-process workers share PyTorch's default generator, from which dropout draws.
_default_generator = threading.Lock()


class LeftOut(msgspec.Struct, frozen=True):
    """A client whose update is not in the sum."""

    client: int
    reason: str


class Tally(msgspec.Struct):
    """What a worker adds up over its clients of a round.

    Attributes:
        loss: sum over included clients of rows x mean loss, in units of 1 / LOSS_UNIT: an
            integer, which may be longer than 64 bits.
        left_out: clients that are not in the sum.
        train_seconds: reading the rows and the local steps.
        sum_seconds: copying the model and adding the updates.
    """

    loss: Decimal = Decimal(0)
    left_out: list[LeftOut] = []
    train_seconds: float = 0.0
    sum_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in the tally of other clients."""
        self.loss += other.loss
        self.left_out += other.left_out
        self.train_seconds += other.train_seconds
        self.sum_seconds += other.sum_seconds


class Trainer:
    """Trains the clients of one worker, one after another, on one resident model.

    Args:
        config: of the job.
        clients: the worker's shard.
        row_shape: shape of one row.
        classes: 0 for regression.
        draws: whether the model draws random numbers in training (dropout).
        smallest_batch: rows that the model needs to train on (see `models.smallest_batch`).
        device: where the model lives.
    """

    def __init__(
        self,
        config: Config,
        clients: Shard,
        row_shape: tuple[int, ...],
        classes: int,
        draws: bool,
        smallest_batch: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.clients = clients
        self.classes = classes
        self.draws = draws
        self.smallest_batch = smallest_batch
        self._refuse_small_clients()
        self.device = device
        with _default_generator:
            # What is not part of the state (random features, say) has to be the owner's too.
            torch.manual_seed(derive(config.seed, "model"))
            model = models.build(config.model, row_shape, classes)
        self.state = FlatState(model, device)
        self.start = [torch.empty_like(v) for v in self.state.vectors]
        self.step = TrainingStep(model, models.task_loss(classes))

    def learn(self, programs: Sequence[Program]) -> None:
        """Takes recorded steps in place of autograd's; on a GPU it goes on without them."""
        if self.device.type == "cpu":
            self.step = TrainingStep(self.step.model, self.step.loss_of, programs)

    def begin(self, vectors: Sequence[torch.Tensor]) -> None:
        """Takes a state as the start of every client to come."""
        for mine, sent in zip(self.start, vectors, strict=True):
            if mine is not sent:
                mine.copy_(sent, non_blocking=True)

    def train(self, client: int, round_number: int, lr: float) -> float:
        """Local SGD of one client on the resident model, as it stands; returns the mean loss."""
        config, federated = self.config, self.config.federated
        x, y = self.clients.load(client)
        batch = federated.batch_size

        def update() -> float:
            return local_sgd(
                self.step,
                x.to(self.device, non_blocking=True),
                y.to(self.device, non_blocking=True),
                epochs=federated.epochs,
                batch_size=None if batch == "full" else batch,
                smallest_batch=self.smallest_batch,
                lr=lr,
                seed=derive(config.seed, "shuffle", round_number, client),
            )

        if not self.draws:
            return update()
        with _default_generator:
            torch.manual_seed(derive(config.seed, "dropout", round_number, client))
            return update()

    def _refuse_small_clients(self) -> None:
        for client in self.clients.ids:
            rows = self.clients.rows(client)
            if rows < self.smallest_batch:
                raise UsageError(
                    f"client {client} has {rows} row, but model {self.config.model} trains on no "
                    f"batch of fewer than {self.smallest_batch} (batch norm): use fewer clients, "
                    "another partition, or a model without batch norm"
                )

    def sum_updates(
        self, clients: Sequence[int], weights: Sequence[float], round_number: int, lr: float
    ) -> tuple[torch.Tensor, Tally]:
        """Trains clients from the same start and adds up their weighted updates.

        Returns:
            The exact sum, int64 on the trainer's device, and the tally.
        """
        exact = ExactSum(self.state.numel, self.device)
        tally = Tally()
        weight_of = dict(zip(clients, weights, strict=True))

        def add(client: int) -> str | None:
            return exact.add(self.state.vectors, self.start, weight_of[client])

        self._train_all(clients, round_number, lr, add, tally)
        return exact.total, tally

    def pass_through(self, clients: Sequence[int], round_number: int, lr: float) -> Tally:
        """Trains clients in turn, each from where the one before it stopped.

        The vectors of `start` are the model that came in, and in the end the one that
        goes out. A client that spoils the model is undone and left out.
        """
        tally = Tally()

        def accept(client: int) -> str | None:
            refusal = unusable(self.state.vectors, self.start)
            if refusal is None:
                self.begin(self.state.vectors)
            return refusal

        self._train_all(clients, round_number, lr, accept, tally)
        return tally

    def _train_all(
        self,
        clients: Sequence[int],
        round_number: int,
        lr: float,
        take: Callable[[int], str | None],
        tally: Tally,
    ) -> None:
        """Trains each client from `start` and hands its update to `take`, which may refuse it."""
        clock = time.perf_counter
        for client in clients:
            t0 = clock()
            self.state.load(self.start)
            t1 = clock()
            loss = self.train(client, round_number, lr)
            t2 = clock()
            refusal = take(client) if isfinite(loss) else f"its training loss is {loss:.3g}"
            if refusal is None:
                tally.loss += Decimal(round(loss * self.clients.rows(client) * LOSS_UNIT))
            else:
                tally.left_out.append(LeftOut(client, refusal))
            tally.train_seconds += t2 - t1
            tally.sum_seconds += (t1 - t0) + (clock() - t2)

    def evaluate_clients(self) -> list[tuple[int, int, float, float]]:
        """(client, rows, loss, metric) of the start state on every client's own rows."""
        self.state.load(self.start)
        results = []
        for client in self.clients.ids:
            x, y = self.clients.load(client)
            found = evaluate(self.state.model, batches(x, y), self.classes, self.device)
            results.append((client, len(y), found.loss, found.metric))
        return results
