"""An encrypted job: all rows train one model together, on shares, and nobody sees a row.

Each worker shares its own rows among the parties, the owner its first model and its held-out
rows. A step is a plan, which the parties and the dealer carry out by themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmpi import models
from fedmpi.config import Config, nearest
from fedmpi.errors import FedMPIError, UsageError
from fedmpi.federated.commands import Report, Reported
from fedmpi.federated.datasets import ShardedDataset, open_dataset
from fedmpi.federated.evaluate import metric_name, score
from fedmpi.federated.job import Observer, resolved
from fedmpi.federated.losses import loss_on_labels, loss_on_targets, targets
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.federated.on_shares import InTheClear, OnShares, parties_among, values_into
from fedmpi.federated.replaced import replace_modules
from fedmpi.federated.seeds import derive
from fedmpi.spdz.fixed_point import largest
from fedmpi.spdz.traffic import since
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.crew import Crew
from fedmpi.workers.operate import Done, Threads

STEPS_AHEAD = 16
"""The owner sends so many steps before it waits: a failure is noticed, and little is queued."""


class EncryptedJob:
    """Owner and parties, ready to train; what `Job` is to rounds of clients.

    Args:
        config: of the job, mode "encrypted".
        crew: idle workers, at least two.
        workers: the same as a program sees them.

    Attributes:
        config: with what was left open filled in.
        model: the owner's: the first weights, at the end those that were trained, if the owner
            is to learn them.
        dataset: what is trained and evaluated on.

    Raises:
        UsageError, DataError: what the configuration names cannot be, or an operator of the
            model, the loss or the optimiser has no secure form.
        RemoteError: the same, found by a worker.
    """

    def __init__(self, config: Config, crew: Crew, workers: Sequence[RemoteWorker]) -> None:
        self.crew = crew
        self._workers = workers
        secure = config.secure
        parties = parties_among(workers, secure.parties)
        torch.set_num_threads(config.compute.threads)
        crew.ask(lambda rank: Threads(config.compute.threads), Done)
        dataset = open_dataset(config, crew)
        assert isinstance(dataset, ShardedDataset)
        self.dataset: ShardedDataset = dataset
        if config.federated.target_accuracy and not dataset.classes:
            raise UsageError(
                f"target_accuracy = {config.federated.target_accuracy} with a regression, which "
                "has no accuracy: leave it out"
            )
        self.config = resolved(config, dataset, crew, torch.device("cpu"))
        self.remarks: list[str] = []
        self.model = self._make_model()
        self._loss_of = loss_on_targets(secure.loss, dataset.classes)
        self._where = (
            InTheClear(workers) if secure.clear else OnShares(workers, parties, secure.bits)
        )
        self._blocks = list(dataset.test())
        self._step = self._where.plan(self._train_step)
        self._mean = self._where.disclosed(_mean)
        self._outputs = self._where.disclosed(_outputs)
        self._score_of = _hits if dataset.classes else _squares
        self._score = self._where.disclosed(self._score_of)
        self._state = self._where.disclosed(_state)
        self._rehearse()

    def _make_model(self) -> nn.Module:
        config, dataset = self.config, self.dataset
        name, shape, classes = config.model, dataset.row_shape, dataset.classes
        torch.manual_seed(derive(config.seed, "model"))
        model = models.build(name, shape, classes)
        replace_modules(model, config.secure.activation, config.secure.pooling)
        models.check(model, name, shape, classes)
        return model

    def _make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        secure, federated = self.config.secure, self.config.federated
        kinds = {
            name: kind
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        }
        if secure.optimizer not in kinds:
            raise UsageError(
                f"optimizer = {secure.optimizer!r}{nearest(secure.optimizer, kinds)}: expected a "
                "class of torch.optim"
            )
        chosen = {"momentum": federated.momentum, "weight_decay": federated.weight_decay}
        chosen = {name: value for name, value in chosen.items() if value}
        make: Callable[..., torch.optim.Optimizer] = kinds[secure.optimizer]
        try:
            return make(model.parameters(), lr=federated.lr, **chosen)
        except TypeError as error:
            raise UsageError(
                f"optimizer = {secure.optimizer!r} with "
                f"{', '.join(f'{name} = {value:g}' for name, value in chosen.items())}: {error}"
            ) from None

    def _rehearse(self) -> None:
        """Two steps and an evaluation on two rows of zeros: what has no secure form is found
        before any row is shared.
        """
        model = self._where.share(self.model)
        optimizer = self._make_optimizer(model)
        x, y = (torch.zeros(2, *t.shape[1:], dtype=t.dtype) for t in self._blocks[0])
        rows, labels = self._where.share(x), self._where.share(y)
        wanted = self._where.share(targets(y, self.dataset.classes))
        try:
            for _ in range(2):
                self._train_step(model.train(), optimizer, rows, wanted)
            model.eval()
            if self.config.secure.learns == "model":
                _outputs(model, rows)
            else:
                self._score_of(model, rows, labels)
        except UsageError as error:
            raise UsageError(f"model {self.config.model} on shares: {error}") from None
        self._where.wait()

    def _train_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
    ) -> Tensor:
        optimizer.zero_grad()
        loss = self._loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run(self, observer: Observer) -> None:
        """Trains for the configured rounds, or until the target accuracy.

        Raises:
            RemoteError: a party failed.
            FedMPIError: the numbers have left the range of fixed point.
        """
        config, federated, where = self.config, self.config.federated, self._where
        clock = time.perf_counter
        x, y = where.train_rows(self.dataset.folder, self.dataset.classes, config.data.verify)
        held_out = self._share_held_out()
        model = where.share(self.model)
        optimizer = self._make_optimizer(model)
        where.wait()
        ended, sent, spoken = clock(), self._sent(), where.traffic()
        for number in range(1, federated.rounds + 1):
            begun, sent_before, spoken_before = clock(), sent, spoken
            lr = federated.lr * federated.lr_decay ** (number - 1)
            for group in optimizer.param_groups:
                group["lr"] = lr
            train_loss = self._train(number, model.train(), optimizer, x, y)
            trained = clock()
            due = number % federated.eval_every == 0 or number == federated.rounds
            test_loss, metric = self._evaluate(model.eval(), held_out) if due else (None, None)
            evaluated = clock()
            sent, spoken = self._sent(), where.traffic()
            now = clock()
            observer.round(
                RoundMetrics(
                    round=number,
                    clients=self.dataset.index.clients,
                    examples=len(x),
                    lr=lr,
                    train_loss=train_loss,
                    test_loss=test_loss,
                    test_metric=metric,
                    metric=metric_name(self.dataset.classes),
                    seconds=now - ended,
                    phases={
                        "broadcast": 0.0,
                        "train": trained - begun,
                        "aggregate": 0.0,
                        "evaluate": evaluated - trained,
                        "wait": begun - ended + now - evaluated,
                    },
                    train_max=trained - begun,
                    bytes_sent=sent[0] - sent_before[0],
                    messages_sent=sent[1] - sent_before[1],
                    traffic=since(spoken_before, spoken),
                )
            )
            ended = now
            if metric is not None and 0 < federated.target_accuracy <= metric:
                break
        if config.secure.learns == "model":
            values_into(self.model, self._state(model))

    def _train(
        self,
        number: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
    ) -> float | None:
        """A round; returns the mean loss, if the owner is to learn it."""
        losses: dict[int, list[Tensor]] = {}  # by the batch's number of rows
        for step, at in enumerate(self._batches(number, len(x)), start=1):
            batch, labels = self._where.rows(x, at), self._where.rows(y, at)
            losses.setdefault(len(at), []).append(self._step(model, optimizer, batch, labels))
            if step % STEPS_AHEAD == 0:
                self._where.wait()
        self._where.wait()
        if self.config.secure.learns == "metric":
            return None
        loss = float(self._mean(losses))
        if not (math.isfinite(loss) and abs(loss) < math.sqrt(largest(self.config.secure.bits))):
            raise FedMPIError(
                f"round {number}: the training loss is {loss:.3g}: the numbers have left their "
                f"range; lower the learning rate ({self.config.federated.lr:g})"
            )
        return loss

    def _batches(self, number: int, rows: int) -> Iterator[Tensor]:
        """Positions of the rows of each step, which everybody knows."""
        federated = self.config.federated
        size = rows if federated.batch_size == "full" else federated.batch_size
        orders = torch.Generator().manual_seed(derive(self.config.seed, "shuffle", number))
        for _ in range(federated.epochs):
            yield from torch.randperm(rows, generator=orders).split(size)

    def _share_held_out(self) -> list[tuple[Tensor, Tensor]]:
        """The owner's rows, and their labels if the owner is not to learn the outputs."""
        share, outputs = self._where.share, self.config.secure.learns == "model"
        return [(share(x), y if outputs else share(y)) for x, y in self._blocks]

    def _evaluate(
        self, model: nn.Module, held_out: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[float | None, float]:
        """Loss, if the owner is to learn the outputs, and metric."""
        config, classes = self.config, self.dataset.classes
        labels = [y for _, y in self._blocks]
        if config.secure.learns == "model":
            outputs = (self._outputs(model, x) for x, _ in held_out)
            loss_of = loss_on_labels(config.secure.loss, classes)
            found = score(zip(outputs, labels, strict=True), classes, loss_of)
            return found.loss, found.metric
        total = sum(float(self._score(model, x, y)) for x, y in held_out)
        y = torch.cat(labels).double()
        if classes:
            return None, total / len(y)
        spread = float((y - y.mean()).square().sum())
        return None, 1 - total / spread if spread else float("nan")

    def _sent(self) -> tuple[int, int]:
        """Bytes and messages of all ranks so far."""
        for worker in self._workers:
            worker.link.flush()
        told = self.crew.ask(lambda rank: Report(), Reported)
        own = self.crew.endpoint.transport
        return (
            own.bytes_sent + sum(t.bytes_sent for t in told),
            own.messages_sent + sum(t.messages_sent for t in told),
        )


# What the owner may learn: each of these is a plan that the parties accept.


def _mean(losses: dict[int, list[Tensor]]) -> Tensor:
    """Of the losses of a round, each weighted by the rows of its batch."""
    rows = sum(size * len(some) for size, some in losses.items())
    parts = [torch.stack(some).sum() * (size / rows) for size, some in losses.items()]
    return torch.stack(parts).sum()


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    """On the owner's held-out rows."""
    with torch.no_grad():
        return model(x).clone()


def _hits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How many of these rows have their greatest output at their label."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).sum()


def _squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The sum of the squared errors."""
    with torch.no_grad():
        return (model(x) - y).square().sum()


def _state(model: nn.Module) -> dict[str, Any]:
    """The trained model."""
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}
