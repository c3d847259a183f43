"""Seals all further messages of a job under a secret that its ranks read from a file.

The secret itself never travels. Every rank adds random bytes of its own for this job, so that
whoever records messages and plays them to a later job that has the same secret is refused.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmpi.comm.endpoint import Endpoint
from fedmpi.comm.sealed import SealedTransport
from fedmpi.data.files import reason
from fedmpi.errors import UsageError
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker

KEY_BYTES = 32
"""Of the secret; in its file they stand as 64 hexadecimal digits."""
_SECRET, _OWN = "seal secret", "seal randomness"


class ReadKey(Command, frozen=True):
    """Read the secret from a file of this rank's node."""

    path: str


class KeyRead(Reply, frozen=True):
    """The rank has the secret; its random bytes for this job."""

    randomness: bytes


class Seal(Command, frozen=True):
    """From the next message on all are sealed; the random bytes of all ranks, the owner first."""

    randomness: list[bytes]


class ConfirmSeal(Command, frozen=True):
    """Say, sealed, that this has arrived."""


class SealConfirmed(Reply, frozen=True):
    """It has."""


def seal(crew: Crew, key_file: str) -> None:
    """Seals the messages between all ranks of a job, before anything secret has travelled.

    Args:
        crew: idle workers.
        key_file: on every node, or on a file system that they share; empty: a new one in the
            owner's home, which is removed again.

    Raises:
        UsageError: the owner's file cannot be used.
        RemoteError: a worker's file cannot.
        ProtocolError: a worker has another secret, or somebody changes messages.
    """
    with _given(key_file) as path:
        secret = read_key(path)
        mine = secrets.token_bytes(KEY_BYTES)
        replies = crew.ask(lambda rank: ReadKey(str(path)), KeyRead)
    randomness = [mine, *(reply.randomness for reply in replies)]
    for rank in crew.ranks:
        crew.tell(rank, Seal(randomness))
    crew.endpoint.flush()
    _switch(crew.endpoint, secret, randomness)
    crew.ask(lambda rank: ConfirmSeal(), SealConfirmed)


def read_key(path: Path) -> bytes:
    """The secret in a file that nobody else may read.

    Raises:
        UsageError: it is missing, open to others, or no secret.
    """
    make = f"make one with: (umask 077; openssl rand -hex {KEY_BYTES} > {path})"
    try:
        with open(path, "rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(4 * KEY_BYTES)
    except OSError as error:
        raise UsageError(
            f"cannot read the key file {path}: {reason(error)}; it has to be on every node: {make}"
        ) from None
    if mode & 0o077:
        raise UsageError(
            f"the key file {path} is open to others (mode {mode & 0o777:o}): chmod 600 it"
        )
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"the key file {path} does not hold {2 * KEY_BYTES} hexadecimal digits: {make}"
        )
    return key


@contextmanager
def _given(key_file: str) -> Iterator[Path]:
    if key_file:
        yield Path(key_file).absolute()
        return
    path = Path.home() / f".fedmpi-key-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES))
    except OSError as error:
        raise UsageError(
            f"cannot write a key file {path}: {reason(error)}; name one of your own: --key-file"
        ) from None
    try:
        yield path
    finally:
        path.unlink()


def _switch(endpoint: Endpoint, secret: bytes, randomness: list[bytes]) -> None:
    salt = sha256(b"".join(randomness)).digest()
    key = HKDF(SHA256(), KEY_BYTES, salt, b"fedmpi job").derive(secret)
    endpoint.transport = SealedTransport(endpoint.transport, key)


@handles(ReadKey, replies=True, unsealed=True)
def read_key_file(worker: Worker, command: ReadKey, tensors: list[torch.Tensor]) -> KeyRead:
    """Keeps the secret for `Seal`."""
    worker.store[_SECRET] = read_key(Path(command.path))
    worker.store[_OWN] = secrets.token_bytes(KEY_BYTES)
    return KeyRead(worker.store[_OWN])


@handles(Seal, urgent=True, unsealed=True)
def switch(worker: Worker, command: Seal, tensors: list[torch.Tensor]) -> None:
    """Refuses a list that does not have its own random bytes: it is of another job."""
    given = command.randomness
    own = worker.object(_OWN, bytes)
    if len(given) != worker.transport.size or given[worker.rank] != own:
        raise UsageError(
            f"rank {worker.rank} was asked to seal its messages for another job: somebody plays "
            "recorded messages to it"
        )
    worker.endpoint.flush()
    _switch(worker.endpoint, worker.object(_SECRET, bytes), given)
    worker.transport = worker.endpoint.transport
    del worker.store[_SECRET], worker.store[_OWN]


@handles(ConfirmSeal, replies=True)
def confirm(worker: Worker, command: ConfirmSeal, tensors: list[torch.Tensor]) -> SealConfirmed:
    """What cannot be opened never gets here."""
    return SealConfirmed()
