"""What clients remember from round to round, kept in files beside a checkpoint.

It belongs to the clients: every worker writes a file of its own and reads those that have its
clients in them. The owner learns the files' names, SHA-256 and clients, and nothing of what is in
them, so that secure aggregation stays what it is.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import torch

import fedmpi.federated.commands  # noqa: F401 - the trainer is made there
from fedmpi.data.files import reading, sha256
from fedmpi.data.hdf5 import create, open_checked, plain_dataset, put_attribute
from fedmpi.errors import DataError
from fedmpi.federated.checkpoint_file import ClientsFile
from fedmpi.federated.commands import TRAINER
from fedmpi.federated.tensor_file import as_array, as_tensor, dtype_name
from fedmpi.federated.trainer import Trainer
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker

CLIENTS_FORMAT = "fedmpi-clients"


class KeepMemory(Command, frozen=True):
    """Write what your clients remember into the folder, for the checkpoint of a round."""

    folder: str
    round: int


class MemoryKept(Reply, frozen=True):
    """The file, or none if there is nothing to remember."""

    files: list[ClientsFile]


class RecallMemory(Command, frozen=True):
    """Take what your clients remember from these files of the folder; forget all else."""

    folder: str
    files: list[ClientsFile]


class MemoryRecalled(Reply, frozen=True):
    """It has."""


def keep_memory(crew: Crew, folder: Path, number: int) -> list[ClientsFile]:
    """Has all workers write what their clients remember after a round.

    Raises:
        RemoteError: a worker cannot write into the folder.
    """
    replies = crew.ask(lambda rank: KeepMemory(str(folder), number), MemoryKept)
    return [file for reply in replies for file in reply.files]


def recall_memory(
    crew: Crew, folder: Path, files: list[ClientsFile], rank_of: dict[int, int]
) -> None:
    """Has every worker take what the clients that it holds now remember.

    Raises:
        DataError: a file is of a client that is not in the job, or has no name that one can have.
        RemoteError: a file is missing or damaged.
    """
    for file in files:
        if not file.file.isprintable():
            raise DataError(f"{folder} holds no clients' file {file.file!r:.80}")
        if strangers := [client for client in file.clients if client not in rank_of]:
            raise DataError(
                f"{folder} holds {file.file!r:.80} of client {strangers[0]}, whom the job does "
                "not have"
            )

    def asked(rank: int) -> RecallMemory:
        mine = [f for f in files if any(rank_of[client] == rank for client in f.clients)]
        return RecallMemory(str(folder), mine)

    crew.ask(asked, MemoryRecalled)


@handles(KeepMemory, replies=True)
def write_memory(worker: Worker, command: KeepMemory, tensors: list[torch.Tensor]) -> MemoryKept:
    """Writes rows one by one: what is remembered is in memory once."""
    memory = worker.object(TRAINER, Trainer).memory()
    clients = sorted({client for of_client in memory.values() for client in of_client})
    if not clients:
        return MemoryKept([])
    path = Path(command.folder) / f"round-{command.round:06}.clients-{worker.rank}.h5"
    with create(path, CLIENTS_FORMAT) as file:
        for name, of_client in memory.items():
            group = file.create_group(name)
            ids = sorted(of_client)
            group.create_dataset("ids", data=ids, dtype="int64")
            for place, client in enumerate(ids):
                host = of_client[client].detach().cpu().contiguous()
                row = as_array(host)
                if not place:
                    rows = group.create_dataset("rows", (len(ids), *row.shape), row.dtype)
                    put_attribute(rows, "dtype", dtype_name(host))
                rows[place] = row
                worker.heartbeat.between()
    digest = sha256(path, worker.heartbeat.between)
    return MemoryKept([ClientsFile(path.name, digest, clients)])


@handles(RecallMemory, replies=True)
def read_memory(
    worker: Worker, command: RecallMemory, tensors: list[torch.Tensor]
) -> MemoryRecalled:
    """Reads all rows of a file at once, and keeps those of its own clients."""
    trainer = worker.object(TRAINER, Trainer)
    memory = trainer.memory()
    for of_client in memory.values():
        of_client.clear()
    own = set(trainer.clients.ids)
    for entry in command.files:
        path = Path(command.folder) / Path(entry.file).name
        if (found := sha256(path, worker.heartbeat.between)) != entry.sha256:
            raise DataError(
                f"{path} is damaged: expected the SHA-256 {entry.sha256[:12]!r}, found "
                f"{found[:12]!r}"
            )
        with open_checked(path, CLIENTS_FORMAT) as file, reading(path):
            for name, of_client in memory.items():
                for client, row in _rows(file, name, path).items():
                    if client in own:
                        of_client[client] = row.to(trainer.device, copy=True)
                    worker.heartbeat.between()
    return MemoryRecalled()


def _rows(file: h5py.File, name: str, path: Path) -> dict[int, torch.Tensor]:
    if name not in file:
        raise DataError(f"{path} is of another job: nothing called {name!r} is in it")
    ids = plain_dataset(file, f"{name}/ids")[()].tolist()
    if not ids:
        return {}
    rows = as_tensor(plain_dataset(file, f"{name}/rows"), f"{path} is damaged: /{name}/rows")
    return dict(zip(ids, rows, strict=True))
