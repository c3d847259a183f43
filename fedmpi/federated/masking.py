"""What the owner asks of its workers in secure aggregation by shares, and how they do it.

`Agree` goes before `Train`, so that what workers deal is on its way while clients train,
`MaskSum` after it. `Unmask` comes once the owner knows which clients are lost.
"""

from __future__ import annotations

import time

import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import ProtocolError
from fedmpi.federated.commands import SUM, TALLIES, TRAINER, Report, Reported, report
from fedmpi.federated.masker import Masker
from fedmpi.federated.masks import add_masks
from fedmpi.federated.neighbours import neighbourhood
from fedmpi.federated.tally import Tally
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.command import Answer, Command, Reply, handles
from fedmpi.workers.worker import Worker

MASKED, MASKER = "masked sum", "masker"
"""Ids in a worker's store: the sum that may leave it, and its `Masker` of the round.

What may leave has an id of its own: were a `MaskSum` lost, the `ReduceSum` that follows it would
send zeros, and never the sum in the clear.
"""


class Agree(Command, frozen=True):
    """Deal seeds and shares for a round among these clients.

    Attributes:
        round, attempt: see `Neighbourhood`.
        clients: of the cohort, ascending.
        ranks: of the worker that plays each.
    """

    round: int
    attempt: int
    clients: list[int]
    ranks: list[int]


class MaskSum(Command, frozen=True):
    """Take in what others have dealt, and mask the sum for the `ReduceSum` to come."""


class Unmask(Command, frozen=True):
    """Open the own masks of all clients but the lost, and what the lost would have cancelled."""

    round: int
    attempt: int
    lost: list[int]


class Unmasked(Reply, frozen=True):
    """What `Masker.open` gives is in its frame."""

    reported: Reported


@handles(Agree, always=True, urgent=True)
def agree(worker: Worker, command: Agree, tensors: list[torch.Tensor]) -> None:
    """Sends what it deals and waits for nothing."""
    trainer = worker.object(TRAINER, Trainer)
    rank = dict(zip(command.clients, command.ranks, strict=True))
    hood = neighbourhood(trainer.config, command.round, command.attempt, rank)
    masker = Masker(worker.rank, hood)
    of_trainer, before = worker.store.get(MASKER, (None, None))
    if of_trainer is trainer:  # not of another job on these workers
        _refuse_again(before, masker)
    worker.store[MASKER] = trainer, masker
    begun = time.perf_counter()
    dealt = masker.deal()
    _note_seconds(worker, time.perf_counter() - begun)
    for other, header, data in dealt:
        worker.endpoint.send(other, Channel.PEER, header, [data])


def _refuse_again(before: Masker, masker: Masker) -> None:
    """A sum is opened once: together with that of fewer clients it would give others' away."""
    last, hood = before.hood, masker.hood
    if not hood.attempt:
        if hood.round <= last.round:
            raise ProtocolError(
                f"rank {masker.rank} does not begin round {hood.round} after round {last.round}"
            )
        return
    if last.round == hood.round and before.lost is None:
        masker.summed = before.summed
    if masker.summed != hood.clients(masker.rank):
        raise ProtocolError(
            f"rank {masker.rank} does not repeat round {hood.round} with its clients "
            f"{hood.clients(masker.rank)}: it has summed {before.summed}, and opened "
            f"{before.lost is not None}"
        )


@handles(MaskSum, always=True, urgent=True)
def mask_sum(worker: Worker, command: MaskSum, tensors: list[torch.Tensor]) -> None:
    """Leaves the masked sum in the store, and the sum too, in case the round is repeated."""
    _, masker = worker.object(MASKER, tuple)
    partners = masker.hood.partners(worker.rank)
    frames = [worker.endpoint.receive(Channel.PEER, other) for other in partners]
    for frame in frames:
        masker.take(frame)
    total = worker.object(SUM, torch.Tensor)
    if masker.summed is None:
        trained = worker.store[TALLIES][-1]
        out = {one.client for one in trained.left_out} | set(trained.dropped)
        masker.summed = [u for u in masker.hood.clients(worker.rank) if u not in out]
    begun = time.perf_counter()
    masked = total.to("cpu", copy=True)
    add_masks(masked, masker.masks())
    worker.store[MASKED] = masked.to(total.device)
    _note_seconds(worker, time.perf_counter() - begun)


def _note_seconds(worker: Worker, seconds: float) -> None:
    tally = Tally(sum_seconds=seconds, mask_seconds=seconds)
    worker.store.setdefault(TALLIES, []).append(tally)


@handles(Unmask, replies=True)
def unmask(worker: Worker, command: Unmask, tensors: list[torch.Tensor]) -> Answer:
    """Opens the masks and forgets the sum."""
    _, masker = worker.object(MASKER, tuple)
    here = masker.hood.round, masker.hood.attempt
    if (command.round, command.attempt) != here:
        raise ProtocolError(
            f"rank {worker.rank} is in round {here[0]}, attempt {here[1]}: it does not open round "
            f"{command.round}, attempt {command.attempt}"
        )
    opened = masker.open(frozenset(command.lost))
    worker.store.pop(SUM, None)
    reported = report(worker, Report(), [])
    assert isinstance(reported, Reported)
    return Answer(Unmasked(reported), [opened])
