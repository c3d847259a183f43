"""model.h5: a model's state, one HDF5 dataset for each tensor, under its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from fedmpi.comm.frame import DTYPES
from fedmpi.config import Config, to_toml
from fedmpi.data.files import reading
from fedmpi.data.hdf5 import create, open_checked, plain_dataset
from fedmpi.errors import DataError

MODEL_FORMAT = "fedmpi-model"


def save_model(path: str | Path, model: nn.Module, config: Config) -> None:
    """Writes the state, whole or not at all.

    A tensor is stored as the bytes that it has in memory; dtypes that HDF5 does not know
    (bfloat16) as integers of the same width, with the name beside them.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, MODEL_FORMAT) as file:
        file.attrs["model"] = config.model
        file.attrs["config"] = to_toml(config)
        state = file.create_group("state", track_order=True)
        for name, tensor in model.state_dict().items():
            host = tensor.detach().cpu().contiguous()
            dataset = state.create_dataset(name, data=_as_array(host))
            dataset.attrs["dtype"] = str(host.dtype).removeprefix("torch.")


def load_model(path: str | Path) -> dict[str, torch.Tensor]:
    """The `state_dict` in a model file.

    Raises:
        DataError: the file is missing, damaged or not a model.
    """
    found: dict[str, torch.Tensor] = {}
    with open_checked(path, MODEL_FORMAT) as file, reading(path):
        for name in _tensor_names(file, "state"):
            dataset = plain_dataset(file, name)
            found[name.removeprefix("state/")] = _as_tensor(dataset, f"{path} is damaged: /{name}")
    return found


def _tensor_names(file: h5py.File, name: str) -> Iterator[str]:
    """The datasets, and links to elsewhere, in a group: a name with a slash makes groups."""
    hard = isinstance(file.get(name, getlink=True), h5py.HardLink)
    if hard and file.get(name, getclass=True) is h5py.Group:
        for part in file[name]:
            yield from _tensor_names(file, f"{name}/{part}")
    else:
        yield name


def _as_tensor(dataset: h5py.Dataset, where: str) -> torch.Tensor:
    name = dataset.attrs["dtype"]
    dtype = DTYPES.get(name)
    if dtype is None or dtype.itemsize != dataset.dtype.itemsize:
        raise DataError(f"{where} is stored as {dataset.dtype}: found the dtype {name!r}")
    return torch.from_numpy(dataset[()].reshape(-1)).view(dtype).reshape(dataset.shape)


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return np.asarray(tensor.view(widths[tensor.element_size()]).numpy())
