"""model.h5: a model's state, one HDF5 dataset for each tensor, under its name."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from fedmpi.config import Config, to_toml
from fedmpi.data.hdf5 import create, open_checked
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
    with open_checked(path, MODEL_FORMAT) as file:
        try:
            found: dict[str, torch.Tensor] = {}

            def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
                if isinstance(item, h5py.Dataset):
                    dtype = getattr(torch, item.attrs["dtype"])
                    found[item.name.removeprefix("/state/")] = (
                        torch.from_numpy(item[()].reshape(-1)).view(dtype).reshape(item.shape)
                    )

            file["state"].visititems(take)
            return found
        except (KeyError, OSError, RuntimeError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from None


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return np.asarray(tensor.view(widths[tensor.element_size()]).numpy())
