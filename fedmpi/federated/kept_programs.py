"""Recorded training steps of FedMPI's own models, kept on disk from job to job.

To record a step takes milliseconds, but PyTorch imports its compiler for it: a second, and 100 MB
of the owner's memory. What is recorded is a function of the model's name, the rows, the descent and
of code; a file is named by a digest of all of that, so that it never has to be looked at again.
Models of a person's own are recorded every time: nobody knows what their code depends on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import torch

import fedmpi
from fedmpi.comm.rank_log import LOG
from fedmpi.data.files import atomic
from fedmpi.decoding import from_msgpack
from fedmpi.errors import DataError
from fedmpi.models import MODELS
from fedmpi.workers.program import Program

FOLDER = "FEDMPI_CACHE"
"""Environment variable that names the folder; empty: nothing is kept."""
_CODE = ("models.py", "federated/*.py", "tensors/*.py", "workers/*.py")
"""What a recording may depend on."""


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
        return from_msgpack(path.read_bytes(), list[Program])
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        LOG.warning("%s cannot be read (%s): the step is recorded anew", path, error)
        return None


def _write(path: Path, programs: list[Program]) -> None:
    """A home that cannot be written costs the next job a second, and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(msgspec.msgpack.encode(programs))
    except (OSError, DataError) as error:
        LOG.warning("the recorded step is not kept: %s", error)


@cache
def _digest_of_code() -> str:
    root = Path(fedmpi.__file__).parent
    digest = hashlib.sha256(fedmpi.__version__.encode())
    for pattern in _CODE:
        for file in sorted(root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()
