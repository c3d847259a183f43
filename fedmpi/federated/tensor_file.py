"""Tensors in an HDF5 file, one dataset for each, under its name, and a SHA-256 over all of them.

A tensor is stored as the bytes that it has in memory; dtypes that HDF5 does not know (bfloat16) as
integers of the same width, with the name beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from fedmpi.comm.frame import DTYPES
from fedmpi.data.hdf5 import attribute, plain_dataset, put_attribute
from fedmpi.errors import DataError

STATE = "state"
"""The group in which all tensors are."""
MOST_SLASHES = 32
"""In a name: each makes a group."""


def put_tensors(file: h5py.File, tensors: Mapping[str, torch.Tensor], about: bytes = b"") -> None:
    """Writes tensors; a name with a slash makes groups.

    Args:
        file: that is being written.
        tensors: by name.
        about: what else the SHA-256 is taken of.
    """
    hosts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    put_attribute(file, "sha256", _digest(hosts, about))
    state = file.create_group(STATE, track_order=True)
    for name, host in hosts.items():
        dataset = state.create_dataset(name, data=as_array(host))
        put_attribute(dataset, "dtype", dtype_name(host))


def read_tensors(file: h5py.File, path: str | Path, about: bytes = b"") -> dict[str, torch.Tensor]:
    """All tensors of a file that has been opened and whose errors are seen to, by name.

    Raises:
        DataError: a dataset is stored in another way or under two names, they claim more bytes
            than the file has, a dtype is not known, or anything is not what was written.
    """
    found: dict[str, torch.Tensor] = {}
    left = file.id.get_filesize()
    for name in _names(file, path):
        dataset = plain_dataset(file, name)
        left -= dataset.nbytes
        if left < 0:
            raise DataError(f"{path} is damaged: its tensors claim more bytes than it has")
        found[name.removeprefix(f"{STATE}/")] = as_tensor(dataset, f"{path} is damaged: /{name}")
    expected, digest = attribute(file, "sha256"), _digest(found, about)
    if expected != digest:
        raise DataError(
            f"{path} is damaged: expected contents with the SHA-256 {str(expected)[:12]!r}, found "
            f"{digest[:12]!r}"
        )
    return found


def dtype_name(tensor: torch.Tensor) -> str:
    """As frames write it."""
    return str(tensor.dtype).removeprefix("torch.")


def as_tensor(dataset: h5py.Dataset, where: str) -> torch.Tensor:
    """The tensor of a dataset; `where` begins the sentence of what is wrong with it.

    Raises:
        DataError: its dtype is not known, or not as wide as what is stored.
    """
    name = attribute(dataset, "dtype")
    dtype = DTYPES.get(str(name))
    if dtype is None or dtype.itemsize != dataset.dtype.itemsize:
        raise DataError(f"{where} is stored as {dataset.dtype}: found the dtype {name!r}")
    return torch.from_numpy(dataset[()].reshape(-1)).view(dtype).reshape(dataset.shape)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the CPU, as HDF5 can store it."""
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return np.asarray(tensor.view(widths[tensor.element_size()]).numpy())


def _digest(tensors: Mapping[str, torch.Tensor], about: bytes) -> str:
    """SHA-256 over `about` and over name, dtype, shape and bytes of all tensors, by name."""
    digest = hashlib.sha256(about)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {dtype_name(tensor)} {list(tensor.shape)}\n".encode())
        digest.update(as_array(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _names(file: h5py.File, path: str | Path) -> Iterator[str]:
    """The datasets, and links to elsewhere: a name with a slash makes groups.

    Groups within groups that have two names each would make any number of tensors of a small file.
    """
    seen: set[int] = set()
    waiting = [STATE]
    while waiting:
        name = waiting.pop()
        if not name.isprintable() or name.count("/") > MOST_SLASHES:
            raise DataError(f"{path} is damaged: a tensor has the name {name!r:.80}")
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            there = file[name]
            address = h5py.h5o.get_info(there.id).addr
            if address in seen:
                raise DataError(f"{path} is damaged: /{name} has another name too")
            seen.add(address)
            if isinstance(there, h5py.Group):
                waiting += [f"{name}/{part}" for part in reversed(list(there))]
                continue
        yield name
