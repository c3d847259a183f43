"""`fedmpi bench clients`: what a client's epoch costs one worker, measured in a few seconds.

A client costs something however few rows it has (the model is loaded, its update is added up) and
something for each row and epoch. Both follow from clients of two lengths. The same trainer trains
them as in a job. Beside it stand what the owner's evaluation costs per row, and a mask per word.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import torch

from fedmpi import models
from fedmpi.comm.collective import add_integers
from fedmpi.config import Config
from fedmpi.data.files import atomic, reason
from fedmpi.data.normalise import Normalisation
from fedmpi.data.shard import ShardArrays, shard_from_arrays
from fedmpi.decoding import from_json
from fedmpi.errors import DataError
from fedmpi.federated.client_step import descent_of
from fedmpi.federated.evaluate import BATCH, batches, evaluate
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.masks import add_masks
from fedmpi.federated.record_training import record_training
from fedmpi.federated.trainer import Trainer
from fedmpi.federated.update import UPDATE
from fedmpi.spdz.stream import KEY_BYTES
from fedmpi.study.units import duration

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")

ROW_SHAPE, CLASSES = (28, 28), 10
"""Images as those of MNIST."""
SHORT, LONG = 2, 10
"""Steps of the two clients."""
MOST_ROWS = 1200
SECONDS = 1.5
"""That each of the measurements may take, about."""
LEAST, MOST = 3, 30
TOGETHER = 4
"""Clients of a sum."""


@dataclass(frozen=True)
class Costs:
    """What a worker and the owner compute, on one core each.

    Attributes:
        model, batch_size, threads: of the configuration.
        vector_bytes: of the state as it is broadcast.
        numel: values in an update, 8 bytes each.
        row: seconds of a client per row and epoch.
        client: seconds of its training beside that.
        add: seconds to load the model for a client, and to add up its update.
        evaluate_row: seconds of the owner per held-out row.
        mask: seconds to expand and add a mask of the whole update.
        sum_byte: seconds per byte to add one vector of int64 to another.
    """

    model: str
    batch_size: int | str
    threads: int
    vector_bytes: int
    numel: int
    row: float
    client: float
    add: float
    evaluate_row: float
    mask: float
    sum_byte: float


def measure(config: Config) -> Costs:
    """Measures on random rows; see `Costs`."""
    torch.set_num_threads(config.compute.threads)
    wanted = config.federated.batch_size
    batch = MOST_ROWS // LONG if wanted == "full" else min(wanted, MOST_ROWS // LONG)
    once = replace(
        config, federated=replace(config.federated, epochs=1, dropout=0.0, batch_size=batch)
    )
    torch.manual_seed(0)
    model = models.build(config.model, ROW_SHAPE, CLASSES)
    models.check(model, config.model, ROW_SHAPE, CLASSES)
    state = FlatState(model)
    trainer = _trainer(once, batch)
    loss_of, descent = models.task_loss(CLASSES), descent_of(once)
    trainer.learn(record_training(model, loss_of, ROW_SHAPE, CLASSES, descent))
    trainer.begin(state.vectors)

    def train(client: int) -> tuple[float, float]:
        several = [client] * TOGETHER  # the first meets a sum that is not in memory yet
        weights = [0.01] * TOGETHER
        _, tally = trainer.sum_updates(several, weights, 1, 1e-4, {UPDATE: state.numel})
        return tally.train_seconds / TOGETHER, tally.sum_seconds / TOGETHER

    short, long = ([found for found, _ in _repeat(partial(train, k))] for k in (0, 1))
    train_short, train_long = (statistics.median(t for t, _ in f) for f in (short, long))
    add = statistics.median(a for _, a in short + long)
    row = max((train_long - train_short) / (batch * (LONG - SHORT)), 0.0)
    x, y = torch.zeros(BATCH, *ROW_SHAPE), torch.zeros(BATCH, dtype=torch.int64)
    tested = _repeat(lambda: evaluate(model, batches(x, y), CLASSES, torch.device("cpu")))
    total = torch.zeros(state.numel, dtype=torch.int64)
    other = torch.zeros_like(total)
    added = _repeat(lambda: add_integers(total, other))
    masked = _repeat(lambda: add_masks(total, [(bytes(KEY_BYTES), 1)]))
    return Costs(
        model=config.model,
        batch_size=wanted,
        threads=config.compute.threads,
        vector_bytes=sum(v.nbytes for v in state.vectors),
        numel=state.numel,
        row=row,
        client=max(train_short - row * batch * SHORT, 0.0),
        add=add,
        evaluate_row=statistics.median(seconds for _, seconds in tested) / BATCH,
        mask=statistics.median(seconds for _, seconds in masked),
        sum_byte=statistics.median(seconds for _, seconds in added) / other.nbytes,
    )


def bench_clients(config: Config, out: str, console: Console) -> Path:
    """Measures, prints, and writes clients-MODEL-bBATCH.json for `predict`.

    Args:
        config: of the job: model, batch size, threads.
        out: folder, made if need be.
        console: where to print.

    Returns:
        The file.
    """
    costs = measure(config)
    path = path_of(out, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Path(temporary).write_text(json.dumps(asdict(costs), indent=1))
    for line in (
        f"{costs.model}, {costs.numel:,} values, batches of {costs.batch_size}, "
        f"{costs.threads} thread",
        f"a row and epoch: {duration(costs.row)}; a client beside that: {duration(costs.client)}",
        f"to load the model for a client and add up its update: {duration(costs.add)}",
        f"a held-out row: {duration(costs.evaluate_row)}; a mask: {duration(costs.mask)}",
        f"written to {path}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return path


def _trainer(config: Config, batch: int) -> Trainer:
    """A worker's, with a client of SHORT and one of LONG batches."""
    offsets = np.array([0, SHORT * batch, (SHORT + LONG) * batch])
    draws = np.random.default_rng(0)
    x = draws.random((offsets[-1], *ROW_SHAPE), dtype=np.float32)
    y = draws.integers(0, CLASSES, offsets[-1])
    arrays = ShardArrays(x, y, np.array([0, 1]), offsets)
    shard = shard_from_arrays(arrays, Normalisation(), config.data.cache_mib)
    model = models.build(config.model, ROW_SHAPE, CLASSES)
    return Trainer(
        config,
        shard,
        ROW_SHAPE,
        CLASSES,
        models.uses_random(model, ROW_SHAPE),
        models.smallest_batch(model, ROW_SHAPE),
        torch.device("cpu"),
    )


def _repeat(action: Callable[[], R]) -> list[tuple[R, float]]:
    """What it returns and the seconds that it takes, again and again; the first time warms up."""
    action()
    found: list[tuple[R, float]] = []
    begun = time.perf_counter()
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - begun < SECONDS):
        before = time.perf_counter()
        result = action()
        found.append((result, time.perf_counter() - before))
    return found


def path_of(folder: str | Path, config: Config) -> Path:
    """Where the costs of a configuration's training are kept."""
    stem = re.sub(r"[^\w.-]+", ".", config.model)
    return Path(folder) / f"clients-{stem}-b{config.federated.batch_size}.json"


def read(path: Path) -> Costs:
    """What `bench clients` has written.

    Raises:
        DataError: the file cannot be read, or is not one of these.
    """
    try:
        return from_json(path.read_bytes(), Costs)
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from None
    except msgspec.MsgspecError as error:
        raise DataError(
            f"{path} is not what `fedmpi bench clients` writes ({error}): measure again"
        ) from None
