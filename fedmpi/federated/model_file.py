"""model.h5: a model's state, one HDF5 dataset for each tensor, under its name, with a SHA-256."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fedmpi.config import Config, to_toml
from fedmpi.data.files import reading
from fedmpi.data.hdf5 import create, open_checked
from fedmpi.federated.tensor_file import put_tensors, read_tensors

MODEL_FORMAT = "fedmpi-model"


def save_model(path: str | Path, model: nn.Module, config: Config) -> None:
    """Writes the state, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, MODEL_FORMAT) as file:
        file.attrs["model"] = config.model
        file.attrs["config"] = to_toml(config)
        put_tensors(file, model.state_dict())


def load_model(path: str | Path) -> dict[str, torch.Tensor]:
    """The `state_dict` in a model file.

    Raises:
        DataError: the file is missing, damaged or not a model.
    """
    with open_checked(path, MODEL_FORMAT) as file, reading(path):
        return read_tensors(file, path)
