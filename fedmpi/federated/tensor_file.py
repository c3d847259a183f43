"""Tensors in an HDF5 file, one dataset for each, under its name.

A tensor is stored as the bytes that it has in memory; dtypes that HDF5 does not know (bfloat16) as
integers of the same width, with the name beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from fedmpi.comm.frame import DTYPES
from fedmpi.data.hdf5 import plain_dataset
from fedmpi.errors import DataError

STATE = "state"
"""The group in which all tensors are."""


def put_tensors(file: h5py.File, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors; a name with a slash makes groups."""
    state = file.create_group(STATE, track_order=True)
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        dataset = state.create_dataset(name, data=as_array(host))
        dataset.attrs["dtype"] = dtype_name(host)


def read_tensors(file: h5py.File, path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file that has been opened and whose errors are seen to, by name.

    Raises:
        DataError: a dataset is stored in another way, or its dtype is not known.
    """
    found: dict[str, torch.Tensor] = {}
    for name in _names(file, STATE):
        dataset = plain_dataset(file, name)
        found[name.removeprefix(f"{STATE}/")] = as_tensor(dataset, f"{path} is damaged: /{name}")
    return found


def dtype_name(tensor: torch.Tensor) -> str:
    """As frames write it."""
    return str(tensor.dtype).removeprefix("torch.")


def as_tensor(dataset: h5py.Dataset, where: str) -> torch.Tensor:
    """The tensor of a dataset; `where` begins the sentence of what is wrong with it.

    Raises:
        DataError: its dtype is not known, or not as wide as what is stored.
    """
    name = dataset.attrs["dtype"]
    dtype = DTYPES.get(name)
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


def _names(file: h5py.File, name: str) -> Iterator[str]:
    """The datasets, and links to elsewhere, in a group: a name with a slash makes groups."""
    hard = isinstance(file.get(name, getlink=True), h5py.HardLink)
    if hard and file.get(name, getclass=True) is h5py.Group:
        for part in file[name]:
            yield from _names(file, f"{name}/{part}")
    else:
        yield name
