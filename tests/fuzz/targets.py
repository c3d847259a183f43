"""What is fuzzed: how a good one is made, and who reads it."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import torch

import fedmpi as fm
import fedmpi.federated.obeyed
import fedmpi.workers.operate
import fedmpi.workers.shards
from fedmpi.comm.endpoint import Frame
from fedmpi.comm.frame import decode, encode
from fedmpi.config import Config, Recipe, from_toml, to_toml
from fedmpi.data.index import INDEX_FILE, read_index, save_index
from fedmpi.data.shard import open_shard
from fedmpi.data.sources import open_source
from fedmpi.federated.checkpoint_file import (
    About,
    Checkpoint,
    ClientsFile,
    read_checkpoint,
    write_checkpoint,
)
from fedmpi.federated.commands import ClientsEvaluated, Ready, Reported, Train
from fedmpi.federated.metrics import LostWorker, RoundMetrics
from fedmpi.federated.model_file import load_model, save_model
from fedmpi.federated.taking_over import Taken
from fedmpi.federated.tally import LeftOut, Tally
from fedmpi.models import build
from fedmpi.study.metrics_file import MetricsWriter, read_metrics
from fedmpi.tensors.recorded_plan import RecordedPlan
from fedmpi.workers.command import Failure, Signalled, Stopped, decode_command
from fedmpi.workers.heartbeat import Ping, Pong
from fedmpi.workers.shards import prepare
from tests.fuzz.mutate import mutated


class Target(ABC):
    """Something that reads what it has not written.

    Args:
        folder: of its own, empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def read(self, drawn: random.Random) -> None:
        """Makes a damaged input and reads it; a refusal raises a `FedMPIError`."""


class Frames(Target):
    """Headers of frames, and the commands in them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        train = Train(1, [3, 5], [0.25, 0.75], 0.1, {"update": 7})
        self._note = encode(train, [torch.arange(10), torch.zeros(3, 3000)])[0]

    def read(self, drawn: random.Random) -> None:
        decode_command(decode(mutated(self._note, drawn)).message)


class Said(Target):
    """Signs of life and what asks for them, alarms, and answers to the owner."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tally = Tally(Decimal(12345), [LeftOut(3, "its training loss is inf")], [5, 7], 1.5)
        failure = Failure("no more memory", 2, "Traceback", 7, "here, round 3, client 5")
        alarm = Failure | Signalled
        kinds: list[tuple[Any, msgspec.Struct]] = [
            (Ping, Ping(60.0, 2)),
            (Pong, Pong("Train", 12.5)),
            (alarm, Signalled("SIGUSR1")),
            (alarm, failure),
            (Stopped | Failure, Stopped()),
            (Ready | Failure, Ready([3, 5], [20, 30], [2, 3], "cpu")),
            (Reported | Failure, Reported(tally, 1000, 10)),
            (ClientsEvaluated | Failure, ClientsEvaluated([(3, 20, 0.5, 0.75)])),
            (Taken | Failure, failure),
        ]
        self._good = [(kind, msgspec.msgpack.encode(message)) for kind, message in kinds]

    def read(self, drawn: random.Random) -> None:
        kind, good = drawn.choice(self._good)
        Frame(3, msgspec.Raw(mutated(good, drawn)), []).read(kind)


class Bytes(Target):
    """A file whose bytes are damaged."""

    def __init__(self, folder: Path, name: str, reader: Callable[[Path], object]) -> None:
        super().__init__(folder)
        self._path = folder / name
        self._good = self._path.read_bytes()
        self._reader = reader

    def read(self, drawn: random.Random) -> None:
        self._path.write_bytes(mutated(self._good, drawn))
        self._reader(self._path)


class HostileShard(Target):
    """A shard that somebody made on purpose: whole, with the hash that its index names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        prepare_digits(folder)
        self._index = read_index(folder)
        self._path = folder / self._index.shards[0].file
        self._good = self._path.read_bytes()

    def read(self, drawn: random.Random) -> None:
        self._path.write_bytes(self._good)
        with h5py.File(self._path, "r+") as file:
            for _ in range(drawn.randint(1, 2)):
                # A second harm may find nothing where the first has been.
                with suppress(KeyError, OSError, RuntimeError, ValueError, TypeError):
                    drawn.choice(HARM)(file, drawn)
        digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        first = replace(self._index.shards[0], sha256=digest)
        save_index(replace(self._index, shards=[first, *self._index.shards[1:]]), self.folder)
        shard = open_shard(self.folder, read_index(self.folder), 0, 1)
        for client in shard.ids:
            shard.load(client)


def _another(file: h5py.File, name: str) -> None:
    if name in file:
        del file[name]


def _other_type(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice(NAMES)
    _another(file, name)
    compound = np.dtype([("a", "i4"), ("b", "f8")])
    dtype = drawn.choice(["i1", "u8", "f2", "f8", "S3", "c16", "bool", compound, h5py.ref_dtype])
    file.create_dataset(name, (7,), dtype)


def _other_shape(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice(NAMES)
    dtype = file[name].dtype if isinstance(file.get(name), h5py.Dataset) else "i8"
    _another(file, name)
    shape = drawn.choice([(), (0,), (1,), (3, 3), (2**40,), (1, 1, 1, 1, 1), None])
    if shape is None:
        file[name] = h5py.Empty(dtype)
    else:
        file.create_dataset(name, shape, dtype)


def _other_values(file: h5py.File, drawn: random.Random) -> None:
    dataset = file.get(drawn.choice(NAMES))
    if isinstance(dataset, h5py.Dataset) and dataset.size and dataset.dtype.kind in "iuf":
        if dataset.size > 10_000_000:
            return
        values = dataset[()]
        extremes = [-1, 0, 1, 2**31, np.nan, np.inf, -np.inf]
        with np.errstate(all="ignore"):
            values.reshape(-1)[drawn.randrange(values.size)] = np.array(
                drawn.choice(extremes)
            ).astype(values.dtype)
        dataset[...] = values


def _link(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice([*NAMES, "client"])
    _another(file, name)
    file[name] = drawn.choice(
        [
            h5py.ExternalLink("/etc/hostname", "/x"),
            h5py.ExternalLink("other.h5", "/x"),
            h5py.SoftLink("/nowhere"),
            h5py.SoftLink(f"/{name}"),
            h5py.SoftLink("/"),
        ]
    )


def _elsewhere(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice(NAMES)
    _another(file, name)
    if drawn.random() < 0.5:
        file.create_dataset(name, (64,), "u1", external=[("/etc/passwd", 0, 64)])
    else:
        layout = h5py.VirtualLayout((64,), "u1")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (64,))
        file.create_virtual_dataset(name, layout)


def _filtered(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice(NAMES)
    _another(file, name)
    how = drawn.choice([{"compression": "gzip"}, {"chunks": True}, {"fletcher32": True}])
    file.create_dataset(name, (1000,), "i8", **how)


def _group(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice([*NAMES, "client"])
    _another(file, name)
    file.create_group(name)


def _gone(file: h5py.File, drawn: random.Random) -> None:
    _another(file, drawn.choice([*NAMES, "client"]))


def _attribute(file: h5py.File, drawn: random.Random) -> None:
    name = drawn.choice(list(file.attrs))
    if drawn.random() < 0.2:
        del file.attrs[name]
    else:
        file.attrs[name] = drawn.choice(
            [
                "",
                "x",
                "\x1b[2J",
                -1,
                0,
                2**62,
                1.5,
                np.nan,
                np.arange(3),
                np.zeros((2, 2)),
                b"\xff\xfe",
            ]
        )


NAMES = ["x", "y", "client/id", "client/offset"]
HARM = [
    _other_type, _other_shape, _other_values, _link, _elsewhere, _filtered, _group, _gone,
    _attribute,
]  # fmt: skip


def prepare_digits(folder: Path) -> None:
    """Two shards of the digits, as `fedmpi prepare` makes them."""
    prepare(Recipe(source="digits", clients=4), 2, folder, None, overwrite=True)


def config_target(folder: Path) -> Target:
    (folder / "config.toml").write_text(to_toml(Config()))
    return Bytes(folder, "config.toml", from_toml)


def index_target(folder: Path) -> Target:
    prepare_digits(folder)
    return Bytes(folder, INDEX_FILE, lambda path: read_index(path.parent))


def shard_target(folder: Path) -> Target:
    prepare_digits(folder)
    index = read_index(folder)
    return Bytes(folder, index.shards[0].file, lambda path: open_shard(folder, index, 0, 1))


def model_target(folder: Path) -> Target:
    model = build("softmax", (8, 8), 10)
    save_model(folder / "model.h5", model, Config())
    return Bytes(folder, "model.h5", load_model)


def plan_target(folder: Path) -> Target:
    def affine(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w) + 1

    recorded = fm.plan(affine).record(torch.ones(2, 3), torch.ones(3, 4))
    recorded.save(folder / "it.plan")
    return Bytes(folder, "it.plan", RecordedPlan.load)


def own_target(folder: Path) -> Target:
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.savez(folder / "own.npz", x=x, y=np.arange(20) % 2, site=np.array(["a", "b"] * 10))

    def read(path: Path) -> None:
        source = open_source(Recipe(str(path)))
        for _ in source.blocks("train"):
            pass
        if source.columns:
            source.column(next(iter(source.columns)))

    return Bytes(folder, "own.npz", read)


def checkpoint_target(folder: Path) -> Target:
    about = About(3, to_toml(Config()), "ab" * 32, [ClientsFile("x.h5", "cd" * 32, [1, 2])], [7])
    state = {"model/0": torch.arange(20.0), "privacy/rounds": torch.tensor(3)}
    write_checkpoint(folder / "round-000003.h5", Checkpoint(about, state))
    return Bytes(folder, "round-000003.h5", read_checkpoint)


def records_target(folder: Path) -> Target:
    numbers = 0.5, 0.25, 0.75, "accuracy", 0.1, {"train": 0.1}, 0.1, 100, 4
    lost = [LostWorker(2, "node1", "its process died", [(3, 1)], [5])]
    with MetricsWriter(folder / "metrics.jsonl") as writer:
        for number in (1, 2):
            writer.write(RoundMetrics(number, 4, 720, 0.1, *numbers, lost=lost))
    return Bytes(folder, "metrics.jsonl", read_metrics)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "frames and commands": Frames,
    "answers and alarms": Said,
    "config files": config_target,
    "index files": index_target,
    "shards, damaged": shard_target,
    "shards, hostile": HostileShard,
    "model files": model_target,
    "plan files": plan_target,
    "own files": own_target,
    "checkpoints": checkpoint_target,
    "records": records_target,
}
