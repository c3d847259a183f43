"""What a job trains on: shards on disk, or the owner's data scattered at the start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fedmpi import models
from fedmpi.config import Config, DataConfig, Recipe
from fedmpi.data.blocks import Blocks, held_out, held_out_of_source
from fedmpi.data.index import Index, check_workers, read_index
from fedmpi.data.plan import Plan, plan
from fedmpi.data.prepare import clients_in_memory
from fedmpi.errors import UsageError
from fedmpi.federated.client_step import descent_of
from fedmpi.federated.commands import LearnStep, Ready, SetUp, SetUpScattered
from fedmpi.federated.evaluate import BATCH
from fedmpi.federated.kept_programs import kept_programs
from fedmpi.federated.placement import may_lend
from fedmpi.federated.record_training import record_training
from fedmpi.federated.rounds import Home
from fedmpi.federated.taking_over import Taken, TakeRows, TakeShard
from fedmpi.workers.crew import Crew
from fedmpi.workers.shards import prepare_once


class Dataset(ABC):
    """A dataset as a job sees it.

    Attributes:
        row_shape: shape of a row.
        classes: number of classes, 0 for regression.
        recipe: what it was made with.
        name: 64 hex digits that name what the recipe gives, however it is split.
    """

    row_shape: tuple[int, ...]
    classes: int
    recipe: Recipe
    name: str

    @abstractmethod
    def test(self) -> Blocks:
        """The held-out rows, normalised, in the batches that are evaluated."""

    @abstractmethod
    def set_up_workers(self, config: Config, crew: Crew, model: nn.Module) -> Home:
        """Gives every worker its clients and a model; returns where the clients live."""

    @abstractmethod
    def hand_over(self, crew: Crew, shard: int, heir: int) -> None:
        """Gives the clients of a shard, counted from 1, to another worker.

        Raises:
            RemoteError: it cannot read them.
        """

    def _set_up(self, config: Config, folder: str, model: nn.Module) -> SetUp:
        shape = self.row_shape
        return SetUp(
            config,
            folder,
            list(shape),
            self.classes,
            draws=models.uses_random(model, shape),
            smallest_batch=models.smallest_batch(model, shape),
        )

    def _settle(self, config: Config, crew: Crew, model: nn.Module) -> Home:
        """Records the training step while the workers open their shards, and hears of them."""
        loss_of = models.task_loss(self.classes)
        descent = descent_of(config)
        about = self.row_shape, self.classes, descent
        record = partial(record_training, model, loss_of, *about)
        programs = kept_programs(config.model, about, record)
        crew.tell_all(crew.ranks, LearnStep(programs))
        return _home(config, crew, crew.hear(crew.ranks, Ready))


class ShardedDataset(Dataset):
    """Each worker opens its own shard of a prepared folder (levels 1 and 3 to 5).

    Args:
        folder: of the prepared dataset.
        index: its index.
        cache_mib: memory for the held-out rows.
        verify: whether to check the SHA-256 of the held-out rows.
    """

    def __init__(self, folder: Path, index: Index, cache_mib: int, verify: bool) -> None:
        self.folder = folder
        self.index = index
        self.cache_mib = cache_mib
        self.verify = verify
        self.row_shape = index.row_shape
        self.classes = index.classes
        self.recipe = index.recipe
        self.name = index.dataset

    def test(self) -> Blocks:
        return held_out(self.folder, self.index, BATCH, self.cache_mib, self.verify)

    def set_up_workers(self, config: Config, crew: Crew, model: nn.Module) -> Home:
        crew.tell_all(crew.ranks, self._set_up(config, str(self.folder), model))
        return self._settle(config, crew, model)

    def hand_over(self, crew: Crew, shard: int, heir: int) -> None:
        crew.tell(heir, TakeShard(str(self.folder), shard - 1))
        crew.hear([heir], Taken)


class ScatteredDataset(Dataset):
    """The owner reads the source and sends every worker its clients' rows (level 2).

    Args:
        made: which worker gets which rows; the clients are those of shards prepared from
            the same recipe, so that the numbers are the same too.
        cache_mib: memory for the held-out rows.
    """

    def __init__(self, made: Plan, cache_mib: int) -> None:
        self.plan = made
        self.cache_mib = cache_mib
        self.row_shape = made.source.row_shape
        self.classes = made.source.classes
        self.recipe = made.recipe
        self.name = made.dataset

    def test(self) -> Blocks:
        return held_out_of_source(self.plan, BATCH, self.cache_mib)

    def set_up_workers(self, config: Config, crew: Crew, model: nn.Module) -> Home:
        command = SetUpScattered(self._set_up(config, "", model), self.plan.normalisation)
        for rank in crew.ranks:
            crew.tell(rank, command, self._rows_of(rank))
            # One worker's rows at a time: the owner never holds the dataset twice.
            crew.endpoint.flush()
        return self._settle(config, crew, model)

    def hand_over(self, crew: Crew, shard: int, heir: int) -> None:
        crew.tell(heir, TakeRows(self.plan.normalisation), self._rows_of(shard))
        crew.hear([heir], Taken)

    def _rows_of(self, shard: int) -> list[torch.Tensor]:
        arrays = clients_in_memory(self.plan, shard - 1)
        parts = (arrays.x, arrays.y, arrays.client_id, arrays.client_offset)
        return [torch.from_numpy(part) for part in parts]


def open_dataset(config: Config, crew: Crew) -> Dataset:
    """The dataset that the configuration names, prepared on the way if it need be.

    Raises:
        UsageError: the shards are not as many as the workers, or the recipe cannot be.
        DataError: files are missing or damaged.
    """
    data, workers = config.data, len(crew.ranks)
    if config.federated.mode == "scatter":
        return ScatteredDataset(plan(data, workers), data.cache_mib)
    if data.path:
        folder, index = Path(data.path), read_index(data.path)
        _refuse_other_recipe(data, index)
    else:
        folder, index = prepare_once(data, workers, None if crew.in_process else crew)
    check_workers(index, folder, workers, launched=not crew.in_process)
    return ShardedDataset(folder, index, data.cache_mib, data.verify)


def _refuse_other_recipe(data: DataConfig, index: Index) -> None:
    """Options that the shards were not prepared with would be passed over in silence."""
    for option in fields(Recipe):
        asked, made = getattr(data, option.name), getattr(index.recipe, option.name)
        if option.name not in ("root", "download") and asked not in (made, option.default):
            raise UsageError(
                f"{option.name} = {asked!r}, but {data.path} was prepared with {made!r}: leave the "
                "option out, or prepare other shards"
            )


def _home(config: Config, crew: Crew, replies: list[Ready]) -> Home:
    devices = zip(crew.ranks, (ready.device for ready in replies), strict=True)
    kinds = {device.partition(":")[0]: rank for rank, device in devices}
    if len(kinds) > 1:
        found = ", ".join(f"{kind} on rank {rank}" for kind, rank in sorted(kinds.items()))
        raise UsageError(
            f"workers train on different kinds of device ({found}), which round differently: "
            "choose nodes of one kind, or --device cpu"
        )
    remember = any(ready.remembers for ready in replies)
    lends = may_lend(config) and not remember and all(ready.reaches for ready in replies)
    home = Home({}, {}, {}, {}, remember, lends)
    for rank, ready in zip(crew.ranks, replies, strict=True):
        home.rank.update(dict.fromkeys(ready.clients, rank))
        home.shard.update(dict.fromkeys(ready.clients, rank))
        home.rows.update(zip(ready.clients, ready.rows, strict=True))
        home.steps.update(zip(ready.clients, ready.steps, strict=True))
    return home
