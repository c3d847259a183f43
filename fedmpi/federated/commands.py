"""What the owner asks of its workers in a federated job, and how they do it."""

from __future__ import annotations

from pathlib import Path

import torch

import fedmpi.workers.vectors  # noqa: F401 - whoever obeys a round also broadcasts and sums
from fedmpi.comm.collective import broadcast
from fedmpi.config import Config
from fedmpi.data.index import read_index
from fedmpi.data.normalise import Normalisation
from fedmpi.data.shard import Shard, ShardArrays, open_shard, shard_from_arrays
from fedmpi.data.visits import Visits
from fedmpi.federated.device import pick, wire_memory
from fedmpi.federated.needs import refuse_memory, worker_bytes
from fedmpi.federated.tally import Tally
from fedmpi.federated.terms import Terms
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.program import Program
from fedmpi.workers.worker import Worker

TRAINER, MODEL, SUM, TALLIES = "trainer", "model", "sum", "tallies"
"""Ids in a worker's store: its trainer, the broadcast model, the sum and the tallies of a round."""


class SetUp(Command, frozen=True):
    """Open the shard, build the model, be ready for rounds."""

    config: Config
    folder: str
    row_shape: list[int]
    classes: int
    draws: bool
    smallest_batch: int


class SetUpScattered(Command, frozen=True):
    """As `SetUp`, with the clients' rows in the frame: tensors x, y (raw), ids, offsets."""

    set_up: SetUp
    normalisation: Normalisation


class LearnStep(Command, frozen=True):
    """Train with these programs, see `record_training`; none: with autograd."""

    programs: list[Program]


class Ready(Reply, frozen=True):
    """A worker's clients, their rows, and the steps of SGD that each takes in a round.

    `remembers`: its clients carry something from round to round, see `ClientStep.remember`;
    `reaches`: it can read the shards of others.
    """

    clients: list[int]
    rows: list[int]
    steps: list[int]
    device: str
    remembers: bool = False
    reaches: bool = False


class Borrow(Command, frozen=True):
    """The clients of the next round that are in shards of others: shard, from 0, by client."""

    shard_of: dict[int, int]


class Train(Command, frozen=True):
    """Train these clients from the broadcast model and keep the sum of their updates.

    `parts` names what the sum is made of, with lengths, see `Trainer.sum_updates`; `terms` are for
    differential privacy.
    """

    round: int
    clients: list[int]
    weights: list[float]
    lr: float
    parts: dict[str, int]
    terms: Terms = Terms()


class Hop(Command, frozen=True):
    """Take the model from one rank, train clients in turn, pass it on to another rank."""

    round: int
    clients: list[int]
    lr: float
    source: int
    destination: int
    chunk_bytes: int


class Report(Command, frozen=True):
    """Say what was done since the last report."""


class Reported(Reply, frozen=True):
    """A worker's part of a round; `bytes_sent` and `messages_sent` count from its start."""

    tally: Tally
    bytes_sent: int
    messages_sent: int


class EvaluateClients(Command, frozen=True):
    """Evaluate the broadcast model on every client of the shard."""


class ClientsEvaluated(Reply, frozen=True):
    """(client, rows, loss, metric) of every client of the shard."""

    clients: list[tuple[int, int, float, float]]


@handles(SetUp, replies=True)
def set_up(worker: Worker, command: SetUp, tensors: list[torch.Tensor]) -> Ready:
    """Opens the worker's own shard."""
    data = command.config.data
    index = read_index(command.folder)
    between = worker.heartbeat.between
    shard = open_shard(command.folder, index, worker.rank - 1, data.cache_mib, data.verify, between)
    return _make_ready(worker, command, shard, Visits(Path(command.folder), index))


@handles(SetUpScattered, replies=True)
def set_up_scattered(worker: Worker, command: SetUpScattered, tensors: list[torch.Tensor]) -> Ready:
    """Takes the rows that the owner sent as this worker's shard."""
    x, y, ids, offsets = (t.numpy() for t in tensors)
    shard = shard_from_arrays(
        ShardArrays(x, y, ids, offsets),
        command.normalisation,
        command.set_up.config.data.cache_mib,
        name=f"rows scattered to rank {worker.rank}",
    )
    return _make_ready(worker, command.set_up, shard)


def _make_ready(
    worker: Worker, command: SetUp, shard: Shard, visits: Visits | None = None
) -> Ready:
    torch.set_num_threads(command.config.compute.threads)
    device = pick(command.config.compute.device, worker.transport.local_rank)
    trainer = Trainer(
        command.config,
        shard,
        tuple(command.row_shape),
        command.classes,
        command.draws,
        command.smallest_batch,
        device,
    )
    remembers = bool(trainer.memory())
    needed = worker_bytes(command.config, trainer.state, len(shard.ids), remembers)
    refuse_memory(worker.transport, needed)
    trainer.visits = visits
    trainer.between = worker.heartbeat.between
    if command.config.comm.silence_seconds != "auto":
        worker.heartbeat.keep_limit(command.config.comm.silence_seconds)
    worker.store[TRAINER] = trainer
    worker.store[MODEL] = wire_memory(trainer.start, worker.transport.takes_gpu_memory)
    rows = [shard.rows(c) for c in shard.ids]
    steps = [trainer.local_steps(n) for n in rows]
    reaches = visits is not None and visits.possible
    return Ready(list(shard.ids), rows, steps, str(device), bool(trainer.memory()), reaches)


@handles(LearnStep)
def learn_step(worker: Worker, command: LearnStep, tensors: list[torch.Tensor]) -> None:
    """Makes the programs ready to be run."""
    worker.object(TRAINER, Trainer).learn(command.programs)


@handles(Borrow)
def borrow(worker: Worker, command: Borrow, tensors: list[torch.Tensor]) -> None:
    """They are read when their turn comes."""
    worker.object(TRAINER, Trainer).borrowed = command.shard_of


@handles(Train, urgent=True)
def train(worker: Worker, command: Train, tensors: list[torch.Tensor]) -> None:
    """Leaves the sum in the store for the `ReduceSum` that follows, the tally for `Report`."""
    trainer = worker.object(TRAINER, Trainer)
    trainer.begin(worker.store[MODEL])
    trainer.terms = command.terms
    total, tally = trainer.sum_updates(
        command.clients, command.weights, command.round, command.lr, command.parts
    )
    worker.store[SUM] = total.to(worker.store[MODEL][0].device)
    worker.store.setdefault(TALLIES, []).append(tally)


@handles(Hop, always=True, urgent=True)
def hop(worker: Worker, command: Hop, tensors: list[torch.Tensor]) -> None:
    """Passes the model on even when training fails: the next worker waits for it."""
    trainer = worker.object(TRAINER, Trainer)
    model = worker.store[MODEL]
    pair = [command.source, worker.rank]
    broadcast(worker.transport, pair, model, "star", command.chunk_bytes)
    trainer.begin(model)
    try:
        tally = trainer.pass_through(command.clients, command.round, command.lr)
        worker.store.setdefault(TALLIES, []).append(tally)
    finally:
        for vector, trained in zip(model, trainer.start, strict=True):
            if vector is not trained:
                vector.copy_(trained)
        pair = [worker.rank, command.destination]
        broadcast(worker.transport, pair, model, "star", command.chunk_bytes)


@handles(Report, replies=True)
def report(worker: Worker, command: Report, tensors: list[torch.Tensor]) -> Reported:
    """All tallies since the last report, as one."""
    tally = Tally()
    for part in worker.store.pop(TALLIES, []):
        tally.add(part)
    return Reported(tally, worker.transport.bytes_sent, worker.transport.messages_sent)


@handles(EvaluateClients, replies=True)
def evaluate_clients(
    worker: Worker, command: EvaluateClients, tensors: list[torch.Tensor]
) -> ClientsEvaluated:
    """On the model of the latest broadcast."""
    trainer = worker.object(TRAINER, Trainer)
    trainer.begin(worker.store[MODEL])
    return ClientsEvaluated(trainer.evaluate_clients())
