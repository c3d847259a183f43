"""The worker's side of a round: its clients, one resident model, and one sum."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from math import isfinite, prod
from typing import TypedDict

import torch

from fedmpi import models
from fedmpi.config import Config
from fedmpi.data.shard import Batch, Shard
from fedmpi.data.shards import Clients, Shards
from fedmpi.data.visits import Visits
from fedmpi.errors import UsageError
from fedmpi.federated.client_stack import ClientStack, stack_size
from fedmpi.federated.client_step import client_steps, descent_of
from fedmpi.federated.cohort import drops_out
from fedmpi.federated.dp_sgd import DpSgd
from fedmpi.federated.evaluate import batches, evaluate
from fedmpi.federated.fixed_point import ExactSum, unusable
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.local_sgd import batch_sizes, local_sgd
from fedmpi.federated.seeds import derive
from fedmpi.federated.tally import LOSS_UNIT, LeftOut, Tally
from fedmpi.federated.terms import Terms
from fedmpi.federated.training_step import TrainingStep
from fedmpi.federated.update import UPDATE, Part, Turn, Update
from fedmpi.workers.building import NotStackable
from fedmpi.workers.program import Program

# In-process workers share PyTorch's default generator, from which dropout draws.
_default_generator = threading.Lock()


class Epochs(TypedDict):
    """How clients go through their rows, see `local_sgd`."""

    epochs: int
    batch_size: int | None
    smallest_batch: int


class Trainer:
    """Trains the clients of one worker on one resident model, or some at a time on a stack.

    Args:
        config: of the job.
        clients: the worker's shard.
        row_shape: shape of one row.
        classes: 0 for regression.
        draws: whether the model draws random numbers in training (dropout).
        smallest_batch: rows that the model needs to train on (see `models.smallest_batch`).
        device: where the model lives.

    Attributes:
        state: the resident model.
        start: the state that the clients of the round start from, vectors as those of `state`.
        beside: what the owner sent with it.
        descent: what clients do with a gradient.
        step: the training step on the resident model.
        stack: for clients that train together; None: each trains on the resident model.
        dp_sgd: what takes the place of its local SGD if rows are to be private.
        attackers: those of its clients that attack.
        client_steps: what the job puts around a client's training.
        terms: what clients need to know of the round for their privacy.
        visits: to the shards of others, if they can be read.
        borrowed: clients of these that train here in the round, with their shards.
        between: called before every client: the worker's sign of life.
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
        self.clients: Shard | Shards = clients
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
        self.beside: list[torch.Tensor] = []
        self.descent = descent_of(config)
        self.step = TrainingStep(model, models.task_loss(classes), (), self.descent)
        self.stack: ClientStack | None = None
        self._row_shape = row_shape
        local = config.federated.privacy.kind == "local"
        self.dp_sgd = DpSgd(self) if local else None
        self.attackers: frozenset[int] = frozenset()
        self.client_steps = client_steps(self)
        self.terms = Terms()
        self.visits: Visits | None = None
        self.borrowed: dict[int, int] = {}
        self.between: Callable[[], None] = lambda: None

    def take_over(self, shard: Shard) -> None:
        """Takes the clients of another shard beside its own."""
        self.clients = Shards([self.clients, shard])
        self._refuse_small_clients()

    def learn(self, programs: Sequence[Program]) -> None:
        """Takes recorded steps in place of autograd's; on a GPU it goes on without them."""
        if self.device.type != "cpu":
            return
        self.step = TrainingStep(self.step.model, self.step.loss_of, programs, self.descent)
        if not programs or self.dp_sgd:
            return
        nbytes = sum(v.nbytes for v in self.state.vectors)
        side_by_side = nbytes * (1 + self.descent.kinds)
        most = stack_size(self.config.compute.stack, side_by_side, len(self.clients.ids))
        y = torch.zeros(1, dtype=torch.int64 if self.classes else torch.float32)
        row = torch.zeros(1, *self._row_shape), y
        try:
            self.stack = ClientStack(self.step.model, programs, most, row, self.descent)
        except NotStackable:
            self.stack = None

    def begin(self, vectors: Sequence[torch.Tensor]) -> None:
        """Takes a state as the start of every client to come; what follows it goes to `beside`."""
        self.beside = list(vectors[len(self.start) :])
        for mine, sent in zip(self.start, vectors, strict=False):
            if mine is not sent:
                mine.copy_(sent, non_blocking=True)

    def train(self, turn: Turn) -> float | None:
        """Local SGD of one client on the resident model, as it stands.

        Returns:
            The mean loss; None if nobody is to know it.
        """
        x, y = self._rows(turn)
        private = self.dp_sgd.turn(turn) if self.dp_sgd else None
        self.step.begin(self._drift(turn))
        self.step.model.train()

        def update() -> float | None:
            if private:
                private.train(x, y)
                return None
            seed = self._order_seed(turn)
            return local_sgd(self.step, x, y, lr=turn.lr, seed=seed, **self._epochs())

        if not self.draws:
            return update()
        with _default_generator:
            torch.manual_seed(derive(self.config.seed, "dropout", turn.round, turn.client))
            return update()

    def _rows(self, turn: Turn) -> Batch:
        """What a client trains on."""
        x, y = self._shard_of(turn.client).load(turn.client)
        x = x.to(self.device, non_blocking=True)
        y = y.to(self.device, non_blocking=True)
        for step in self.client_steps:
            x, y = step.rows(turn, x, y)
        return x, y

    def _shard_of(self, client: int) -> Clients:
        """Where a client's rows are: in a shard of the worker's own, or of another's."""
        if client in self.borrowed and self.visits:
            return self.visits.shard(self.borrowed[client])
        return self.clients

    def _drift(self, turn: Turn) -> list[torch.Tensor]:
        """What is added to the gradient of each parameter that is trained; empty if nothing is."""
        drifts = [step.drift(turn) for step in self.client_steps if step.drifts]
        return self.state.by_parameter(torch.stack(drifts).sum(0)) if drifts else []

    def _epochs(self) -> Epochs:
        federated = self.config.federated
        size = None if federated.batch_size == "full" else federated.batch_size
        return {
            "epochs": federated.epochs,
            "batch_size": size,
            "smallest_batch": self.smallest_batch,
        }

    def _order_seed(self, turn: Turn) -> int:
        return derive(self.config.seed, "shuffle", turn.round, turn.client)

    def local_steps(self, rows: int) -> int:
        """Steps of SGD that a client with so many rows takes in a round."""
        federated = self.config.federated
        size = None if federated.batch_size == "full" else federated.batch_size
        return federated.epochs * len(batch_sizes(rows, size, self.smallest_batch))

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
        self,
        clients: Sequence[int],
        weights: Sequence[float],
        round_number: int,
        lr: float,
        parts: Mapping[str, int],
    ) -> tuple[torch.Tensor, Tally]:
        """Trains clients from the same start and adds up their weighted updates.

        Args:
            clients: of this worker.
            weights: of their updates.
            round_number: from 1.
            lr: local learning rate.
            parts: names and lengths of the parts of the sum, the update of the state first.

        Returns:
            The exact sum of all parts, one after another, int64 on the trainer's device, and
            the tally.
        """
        sums = {name: ExactSum(length, self.device) for name, length in parts.items()}
        tally = Tally()
        weight_of = dict(zip(clients, weights, strict=True))

        def add(turn: Turn) -> str | None:
            update = self.finish(turn, weight_of[turn.client])
            own = Part(update.local, update.start, update.weight)
            return _add_all(sums, {UPDATE: own} | update.parts)

        self._train_all(clients, round_number, lr, add, tally)
        totals = [exact.total for exact in sums.values()]
        return totals[0] if len(totals) == 1 else torch.cat(totals), tally

    def keep_updates(
        self, clients: Sequence[int], weights: Sequence[float], round_number: int, lr: float
    ) -> tuple[dict[int, torch.Tensor], Tally]:
        """Trains clients from the same start and keeps their updates apart.

        Returns:
            The change of the state of each client that is not left out, float32 [numel] on the
            trainer's device, and the tally. A weight that a step lowered has scaled its update.
        """
        kept: dict[int, torch.Tensor] = {}
        tally = Tally()
        weight_of = dict(zip(clients, weights, strict=True))

        def keep(turn: Turn) -> str | None:
            weight = weight_of[turn.client]
            update = self.finish(turn, weight)
            refusal = unusable(update.local, update.start)
            if refusal is None:
                moved = [
                    # A constant of the model may be infinite.
                    torch.where(a == b, 0.0, a.to(torch.float64) - b.to(torch.float64)).float()
                    for a, b in zip(update.local, update.start, strict=True)
                ]
                kept[turn.client] = torch.cat(moved)
                if update.weight != weight:
                    kept[turn.client].mul_(update.weight / weight)
            return refusal

        self._train_all(clients, round_number, lr, keep, tally)
        return kept, tally

    def finish(self, turn: Turn, weight: float) -> Update:
        """The update of a client that has just trained, after all steps."""
        update = Update(turn, self.state.vectors, self.start, weight)
        for step in self.client_steps:
            step.finish(update)
        return update

    def pass_through(self, clients: Sequence[int], round_number: int, lr: float) -> Tally:
        """Trains clients in turn, each from where the one before it stopped.

        The vectors of `start` are the model that came in, and in the end the one that
        goes out. A client that spoils the model is undone and left out.
        """
        tally = Tally()

        def accept(turn: Turn) -> str | None:
            refusal = unusable(self.state.vectors, self.start)
            if refusal is None:
                self.begin(self.state.vectors)
            return refusal

        self._train_all(clients, round_number, lr, accept, tally, in_turn=True)
        return tally

    def _train_all(
        self,
        clients: Sequence[int],
        round_number: int,
        lr: float,
        take: Callable[[Turn], str | None],
        tally: Tally,
        in_turn: bool = False,
    ) -> None:
        """Trains each client from `start` and hands its turn to `take`, which may refuse it.

        What a client that drops out has trained reaches nobody: it is not trained. Clients
        train together where that is faster, but not `in_turn`, when one begins where another ended.
        """
        turns = []
        for client in clients:
            if drops_out(self.config.seed, round_number, client, self.config.federated.dropout):
                tally.dropped.append(client)
            else:
                turns.append(Turn(round_number, client, self._shard_of(client).rows(client), lr))
        clock = time.perf_counter
        trained = self._together(turns) if self.stack and not in_turn else self._in_turn(turns)
        begun = clock()
        for turn, loss in trained:
            ended = clock()
            known = loss or 0.0
            refusal = take(turn) if isfinite(known) else f"its training loss is {known:.3g}"
            if refusal is None:
                for step in self.client_steps:
                    step.used(turn)
                tally.loss += Decimal(round(known * turn.rows * LOSS_UNIT))
            else:
                tally.left_out.append(LeftOut(turn.client, refusal))
            tally.train_seconds += ended - begun
            begun = clock()
            tally.sum_seconds += begun - ended

    def _in_turn(self, turns: Sequence[Turn]) -> Iterator[tuple[Turn, float | None]]:
        """Every client's loss, its model being the resident one until the next is asked for."""
        for turn in turns:
            self.between()
            self.state.load(self.start)
            with noting([turn]):
                loss = self.train(turn)
            yield turn, loss

    def _together(self, turns: Sequence[Turn]) -> Iterator[tuple[Turn, float | None]]:
        """The same, of clients that train at the same time; the largest ones come first."""
        stack = self.stack
        assert stack
        row_bytes = 4 * prod(self._row_shape)
        for group in stack.groups([turn.rows for turn in turns], row_bytes):
            some = [turns[k] for k in group]
            self.between()
            self.state.load(self.start)
            with noting(some):
                losses = stack.train(
                    [self._rows(turn) for turn in some],
                    [self._order_seed(turn) for turn in some],
                    [self._drift(turn) for turn in some],
                    lr=some[0].lr,
                    **self._epochs(),
                )
            for k, (turn, loss) in enumerate(zip(some, losses, strict=True)):
                stack.store(k)
                yield turn, loss

    def memory(self) -> dict[str, dict[int, torch.Tensor]]:
        """What its steps remember of clients, by names that are the same on every worker."""
        return {
            f"{type(step).__name__}.{name}": of_client
            for step in self.client_steps
            for name, of_client in step.memory.items()
        }

    def evaluate_clients(self) -> list[tuple[int, int, float, float]]:
        """(client, rows, loss, metric) of the start state on every client's own rows."""
        self.state.load(self.start)
        results = []
        for client in self.clients.ids:
            self.between()
            x, y = self.clients.load(client)
            found = evaluate(self.state.model, batches(x, y), self.classes, self.device)
            results.append((client, len(y), found.loss, found.metric))
        return results


@contextmanager
def noting(turns: Sequence[Turn]) -> Iterator[None]:
    """Says with an error in whose training, and in which round, it was raised."""
    try:
        yield
    except Exception as error:
        clients = ", ".join(str(turn.client) for turn in turns)
        error.add_note(f"round {turns[0].round}, client{'s' * (len(turns) > 1)} {clients}")
        raise


def _add_all(sums: Mapping[str, ExactSum], parts: Mapping[str, Part]) -> str | None:
    """Adds the parts of an update to their sums, or none of them; returns why not."""
    added: list[str] = []
    for name, exact in sums.items():
        part = parts[name]
        refusal = exact.add(part.after, part.before, part.weight)
        if refusal is not None:
            for before in added:
                undone = parts[before]
                sums[before].take_back(undone.after, undone.before, undone.weight)
            return refusal
        added.append(name)
    return None
