"""Recorded training steps of FedMPI's own models, kept on disk from job to job.

To record a step takes milliseconds, but PyTorch imports its compiler for it: a second, and 100 MB
of the owner's memory. What is recorded is a function of the model's name, the rows, the descent and
of code; a file is named by a digest of all of that, so that it never has to be looked at again. It
begins with a digest of its name and content, since a damaged program may well be one that trains
something else, and it is not read unless it is this user's alone to write.
Models of a person's own are recorded every time: nobody knows what their code depends on.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import torch

import fedmpi
from fedmpi.comm.frame import UNREADABLE
from fedmpi.comm.rank_log import LOG
from fedmpi.data.files import atomic, no_link, reason
from fedmpi.decoding import from_msgpack
from fedmpi.errors import DataError
from fedmpi.models import MODELS
from fedmpi.workers.program import Program

FOLDER = "FEDMPI_CACHE"
"""Environment variable that names the folder; empty: nothing is kept."""
_CODE = ("models.py", "federated/*.py", "tensors/*.py", "workers/*.py")
"""What a recording may depend on."""
_DIGEST_BYTES = 32


def kept_programs(
    model: str, about: tuple[object, ...], record: Callable[[], list[Program]]
) -> list[Program]:
    """The programs that `record` gives, from the file of an earlier job if there is one.

    Args:
        model: name of the model.
        about: what else they depend on, with a `repr` that says all of it.
        record: makes them.
    """
    folder = _folder()
    if model not in MODELS or folder is None:
        return record()
    text = repr((model, *about, torch.__version__, _digest_of_code()))
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.msgpack"
    found = _read(path)
    if found is None:
        found = record()
        _write(path, found)
    return found


def _folder() -> Path | None:
    chosen = os.environ.get(FOLDER)
    if chosen is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches) / "fedmpi"
    return Path(chosen) if chosen else None


def _read(path: Path) -> list[Program] | None:
    try:
        _require_own(path.parent.stat(), path.parent)
        with open(path, "rb", opener=no_link) as file:
            _require_own(os.fstat(file.fileno()), path)
            digest, content = file.read(_DIGEST_BYTES), file.read()
        if digest != _digest_of(path, content):
            raise DataError(f"{path} is damaged")
        return from_msgpack(content, list[Program])
    except FileNotFoundError:
        return None
    except (OSError, DataError, *UNREADABLE) as error:
        LOG.warning("%s is not read, the step is recorded anew: %s", path, reason(error))
        return None


def _write(path: Path, programs: list[Program]) -> None:
    """A home that cannot be written costs the next job a second, and nothing else."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(path.parent.stat(), path.parent)
        content = msgspec.msgpack.encode(programs)
        with atomic(path, mode=0o600) as temporary:
            temporary.write_bytes(_digest_of(path, content) + content)
    except (OSError, DataError) as error:
        LOG.warning("the recorded step is not kept: %s", reason(error))


def _require_own(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise DataError(
            f"{path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}: "
            f"expected user {os.geteuid()}, and nobody else to write it"
        )


def _digest_of(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()


@cache
def _digest_of_code() -> str:
    root = Path(fedmpi.__file__).parent
    digest = hashlib.sha256(fedmpi.__version__.encode())
    for pattern in _CODE:
        for file in sorted(root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()
