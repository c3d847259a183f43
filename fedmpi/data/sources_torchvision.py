"""The datasets that torchvision knows: the MNIST family and CIFAR.

The MNIST family is read straight from its IDX files, so that torchvision is needed for
nothing but the download. CIFAR is read by torchvision.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi.config import Recipe
from fedmpi.data.files import reason
from fedmpi.data.idx import find_idx, idx_rows
from fedmpi.data.rows import ArrayRows
from fedmpi.data.source import Source, make_source
from fedmpi.errors import DataError
from fedmpi.torchvision_compat import import_torchvision

DEFAULT_ROOT = "data/raw"
"""Where the raw files are when a recipe names no root."""


@dataclass(frozen=True)
class IdxDataset:
    """A dataset of the MNIST family: four IDX files.

    Attributes:
        torchvision: its class in torchvision.datasets and its folder under the root.
        prefix: what the names of its files begin with.
        test: what the names of the files for evaluation begin with after that.
        split: torchvision's argument, for EMNIST only.
        bare: whether the files may lie in the root itself. Those of Fashion-MNIST and KMNIST
            may not: they have the names of MNIST's.
    """

    torchvision: str
    prefix: str = ""
    test: str = "t10k"
    split: str = ""

    bare: bool = True

    def open(self, recipe: Recipe) -> Source:
        """Finds the files in ROOT/NAME/raw or in ROOT itself, or downloads them."""
        if recipe.download and not self.files(recipe):
            arguments: dict[str, Any] = {"split": self.split} if self.split else {}
            _torchvision_dataset(recipe, self.torchvision, download=True, **arguments)
        files = self.files(recipe)
        if not files:
            folders = " or ".join(map(str, self._folders(recipe)))
            raise _missing(recipe, f"needs {', '.join(self._names())} (or .gz) in {folders}")
        x, y, x_test, y_test = files
        return make_source(
            recipe,
            recipe.source,
            idx_rows(x, 3),
            idx_rows(y, 1),
            idx_rows(x_test, 3),
            idx_rows(y_test, 1),
        )

    def files(self, recipe: Recipe) -> list[Path]:
        """Images and labels to train on, then those to evaluate on; none if one is missing."""
        for folder in self._folders(recipe):
            found = [path for name in self._names() if (path := find_idx(folder, name))]
            if len(found) == len(self._names()):
                return found
        return []

    def _names(self) -> list[str]:
        return [
            f"{self.prefix}{part}-{kind}"
            for part in ("train", self.test)
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]

    def _folders(self, recipe: Recipe) -> list[Path]:
        root = Path(recipe.root or DEFAULT_ROOT)
        return [root / self.torchvision / "raw", *([root] if self.bare else [])]


@dataclass(frozen=True)
class CifarDataset:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        torchvision: its class in torchvision.datasets.
        folder: of its files, under the root.
    """

    torchvision: str
    folder: str

    def open(self, recipe: Recipe) -> Source:
        """Reads the 50,000 and 10,000 images as uint8 [3, 32, 32]."""
        arrays: list[Any] = []
        for train in (True, False):
            dataset = _torchvision_dataset(
                recipe, self.torchvision, train=train, download=recipe.download
            )
            arrays += [
                ArrayRows(dataset.data.transpose(0, 3, 1, 2)),
                ArrayRows(np.array(dataset.targets)),
            ]
        return make_source(recipe, recipe.source, *arrays)

    def files(self, recipe: Recipe) -> list[Path]:
        """The files that torchvision unpacked."""
        return sorted((Path(recipe.root or DEFAULT_ROOT) / self.folder).glob("*"))


def _torchvision_dataset(recipe: Recipe, name: str, **arguments: Any) -> Any:
    """A dataset of torchvision; what is missing or damaged is a `DataError`."""
    datasets = import_torchvision().datasets
    root = recipe.root or DEFAULT_ROOT
    try:
        return getattr(datasets, name)(root, **arguments)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        problem = "could not be downloaded to" if recipe.download else "is not whole in"
        raise _missing(recipe, f"{problem} {root} ({reason(error)})") from error


def _missing(recipe: Recipe, problem: str) -> DataError:
    folder = recipe.root or "DIR"
    return DataError(
        f"{recipe.source} {problem}: on the login node, which has internet, run "
        f"`python -m fedmpi prepare {recipe.source} --download --root {folder}`, "
        f"then use --root {folder}"
    )


TORCHVISION: Mapping[str, IdxDataset | CifarDataset] = {
    "mnist": IdxDataset("MNIST"),
    "fashion_mnist": IdxDataset("FashionMNIST", bare=False),
    "kmnist": IdxDataset("KMNIST", bare=False),
    "emnist": IdxDataset("EMNIST", "emnist-balanced-", "test", "balanced"),
    "cifar10": CifarDataset("CIFAR10", "cifar-10-batches-py"),
    "cifar100": CifarDataset("CIFAR100", "cifar-100-python"),
}
"""The sources that torchvision can download, by name."""
