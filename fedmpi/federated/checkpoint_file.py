"""A checkpoint in a file: what it was taken of, tensors, and a SHA-256 over all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from fedmpi.data.files import reading, reason
from fedmpi.data.hdf5 import create, open_checked, plain_dataset
from fedmpi.decoding import from_json
from fedmpi.errors import DataError
from fedmpi.federated.remembered import State
from fedmpi.federated.tensor_file import put_tensors, read_tensors

CHECKPOINT_FORMAT = "fedmpi-checkpoint"
ABOUT = "about"


@dataclass(frozen=True)
class ClientsFile:
    """A file beside the checkpoint with what clients of a worker remember.

    Attributes:
        file: its name in the same folder.
        sha256: of the file, 64 hex digits.
        clients: of whom there is something in it.
    """

    file: str
    sha256: str
    clients: list[int]


@dataclass(frozen=True)
class About:
    """What a checkpoint was taken of.

    Attributes:
        round: the last that had ended, from 1.
        config: of the job, as TOML.
        dataset: 64 hex digits that name the data, however it is split.
        clients: files with what clients remember.
        gone: clients that had died with a worker; the run goes on without them.
    """

    round: int
    config: str
    dataset: str
    clients: list[ClientsFile] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A job after a round.

    Attributes:
        about: what it was taken of.
        state: on the CPU.
    """

    about: About
    state: State


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, CHECKPOINT_FORMAT) as file:
        about = msgspec.json.encode(checkpoint.about)
        file.create_dataset(ABOUT, data=np.frombuffer(about, dtype=np.uint8))
        put_tensors(file, checkpoint.state, about)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks every byte of its contents.

    Raises:
        DataError: the file is missing, damaged, of a newer version, or no checkpoint.
    """
    with open_checked(path, CHECKPOINT_FORMAT) as file, reading(path):
        about = plain_dataset(file, ABOUT)[()].tobytes()
        state = read_tensors(file, path, about)
        try:
            return Checkpoint(from_json(about, About), state)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is damaged: /{ABOUT}: {reason(error)}") from None
