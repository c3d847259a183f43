"""A checkpoint in a file: what it was taken of, tensors, and a SHA-256 over all of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import msgspec
import numpy as np

from fedmpi.data.files import reading
from fedmpi.data.hdf5 import attribute, create, open_checked, plain_dataset, put_attribute
from fedmpi.decoding import from_json
from fedmpi.errors import DataError
from fedmpi.federated.remembered import State
from fedmpi.federated.tensor_file import as_array, dtype_name, put_tensors, read_tensors

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

    def digest(self) -> str:
        """SHA-256 over `about` and over name, dtype, shape and bytes of all tensors, by name."""
        found = hashlib.sha256(msgspec.json.encode(self.about))
        for name, tensor in sorted(self.state.items()):
            found.update(f"\n{name} {dtype_name(tensor)} {list(tensor.shape)}\n".encode())
            found.update(as_array(tensor.contiguous()).reshape(-1).view(np.uint8).data)
        return found.hexdigest()


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, CHECKPOINT_FORMAT) as file:
        put_attribute(file, "sha256", checkpoint.digest())
        about = np.frombuffer(msgspec.json.encode(checkpoint.about), dtype=np.uint8)
        file.create_dataset(ABOUT, data=about)
        put_tensors(file, checkpoint.state)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks every byte of its contents.

    Raises:
        DataError: the file is missing, damaged, of a newer version, or no checkpoint.
    """
    with open_checked(path, CHECKPOINT_FORMAT) as file, reading(path):
        checkpoint = Checkpoint(_about(file, path), read_tensors(file, path))
        expected, found = attribute(file, "sha256"), checkpoint.digest()
    if expected != found:
        raise DataError(
            f"{path} is damaged: expected contents with the SHA-256 {str(expected)[:12]!r}, found "
            f"{found[:12]!r}"
        )
    return checkpoint


def _about(file: h5py.File, path: Path) -> About:
    dataset = plain_dataset(file, ABOUT)
    try:
        return from_json(dataset[()].tobytes(), About)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: /{ABOUT}: {error}") from None
