"""model.h5 gives back every byte of a state, and says so when it cannot."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import h5py
import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.comm.frame import DTYPES
from fedmpi.config import Config, from_mapping
from fedmpi.data.hdf5 import create, put_attribute
from fedmpi.errors import DataError
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.model_file import MODEL_FORMAT, load_model, save_model
from tests.comm.worlds import same
from tests.federated.factories import mixed, small_resnet


def every_dtype() -> nn.Module:
    """Random bytes of every dtype: as a matrix, without elements, and without dimensions."""
    model = nn.Module()
    for name, dtype in DTYPES.items():
        if dtype.is_complex:
            continue
        high = 2 if dtype == torch.bool else 256
        raw = torch.randint(0, high, (12 * dtype.itemsize,), dtype=torch.uint8).view(dtype)
        model.register_buffer(f"{name}_matrix", raw.view(3, 4))
        model.register_buffer(f"{name}_empty", raw[:0].view(0, 5))
        model.register_buffer(f"{name}_scalar", raw[7])
    return model


@pytest.mark.parametrize(
    "make",
    [
        every_dtype,
        lambda: small_resnet((1, 8, 8), 10),
        lambda: mixed((1, 8, 8), 10),
        lambda: models.build("2nn", (1, 8, 8), 10),
    ],
    ids=["every dtype", "small_resnet", "mixed", "2nn"],
)
def test_every_byte_comes_back(make, tmp_path: Path) -> None:
    model = make()
    save_model(tmp_path / "model.h5", model, Config(seed=5))
    found, expected = load_model(tmp_path / "model.h5"), model.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert same(found[name], tensor), name
    if not isinstance(model, nn.Sequential):
        return
    other = make()
    other.load_state_dict(found)
    assert all(same(t, expected[name]) for name, t in other.state_dict().items())


def test_a_model_on_flat_vectors_is_saved_alike(tmp_path: Path) -> None:
    model = small_resnet((1, 8, 8), 10)
    save_model(tmp_path / "plain.h5", model, Config())
    FlatState(model)
    save_model(tmp_path / "flat.h5", model, Config())
    plain, flat = load_model(tmp_path / "plain.h5"), load_model(tmp_path / "flat.h5")
    assert list(plain) == list(flat)
    assert all(same(plain[name], flat[name]) for name in plain)


def test_the_file_tells_where_it_comes_from(tmp_path: Path) -> None:
    import tomllib

    config = Config(seed=5, model="softmax", name="a run")
    save_model(tmp_path / "model.h5", models.build("softmax", (4,), 3), config)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["model"] == "softmax"
        assert from_mapping(tomllib.loads(file.attrs["config"]), "it") == config


def damaged(path: Path, content: bytes) -> bool:
    """Whether the file is refused by name; any answer but a refusal or a state fails."""
    path.write_bytes(content)
    try:
        load_model(path)
    except DataError as error:
        return path.name in str(error) or pytest.fail(f"no file is named: {error}")
    return False


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    torch.manual_seed(0)
    save_model(tmp_path / "model.h5", models.build("softmax", (1, 8, 8), 10), Config())
    return (tmp_path / "model.h5").read_bytes()


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, content: bytes) -> None:
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        assert damaged(tmp_path / "cut.h5", content[:length]), length


def test_flipped_bytes_are_refused_or_change_nothing(tmp_path: Path, content: bytes) -> None:
    """A weight is not another one by a flip, and the structure is refused without a crash."""
    draw, whole = random.Random(1), load_model(tmp_path / "model.h5")
    refused = 0
    for _ in range(150):
        flipped = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            flipped[draw.randrange(min(len(flipped), 4000))] ^= 1 << draw.randrange(8)
        if damaged(tmp_path / "flipped.h5", bytes(flipped)):
            refused += 1
        else:
            found = load_model(tmp_path / "flipped.h5")
            assert found.keys() == whole.keys()
            assert all(same(found[name], tensor) for name, tensor in whole.items())
    assert refused > 10


def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"nowhere\.h5"):
        load_model(tmp_path / "nowhere.h5")
    assert damaged(tmp_path / "text.h5", b"not HDF5 at all" * 100)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["state/weight"] = [1.0]
    with pytest.raises(DataError, match=r"foreign\.h5"):
        load_model(tmp_path / "foreign.h5")


@pytest.mark.parametrize("dtype", ["float99", "nn", "float64", "", "manual_seed"])
def test_a_dtype_that_is_none_is_refused(tmp_path: Path, content: bytes, dtype: str) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        put_attribute(file["state/1.bias"], "dtype", dtype or " ")
    with pytest.raises(DataError, match=r"model\.h5 is damaged"):
        load_model(path)


def test_a_dtype_that_is_a_word_of_any_length_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is not read: HDF5 was seen to crash the process where the reference to it is damaged."""
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        file["state/1.bias"].attrs["dtype"] = "float32"
    with pytest.raises(DataError, match=r"model\.h5 is damaged: .* found the dtype None"):
        load_model(path)


def test_a_link_to_elsewhere_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.h5"
    (tmp_path / "other.h5").write_bytes(content)
    with h5py.File(path, "r+") as file:
        del file["state/1.bias"]
        file["state/1.bias"] = h5py.ExternalLink("other.h5", "/state/1.bias")
    with pytest.raises(DataError, match=r"model\.h5: /state/1.bias is a link to elsewhere"):
        load_model(path)
    with h5py.File(path, "r+") as file:
        del file["state"]
        file["state"] = h5py.ExternalLink("other.h5", "/state")
    with pytest.raises(DataError, match=r"model\.h5: /state is a link to elsewhere"):
        load_model(path)


def test_a_tensor_larger_than_memory_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        del file["state/1.bias"]
        put_attribute(
            file["state"].create_dataset("1.bias", (2**50,), "float32"), "dtype", "float32"
        )
    with pytest.raises(DataError, match=r"model\.h5: /state/1.bias has no contents of the size"):
        load_model(path)


def test_a_tensor_that_was_never_written_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        del file["state/1.bias"]
        put_attribute(file["state"].create_dataset("1.bias", (10,), "float32"), "dtype", "float32")
    with pytest.raises(DataError, match=r"model\.h5: /state/1.bias has no contents of the size"):
        load_model(path)


def test_hard_links_do_not_multiply_tensors(tmp_path: Path, content: bytes) -> None:
    """30 groups with two names each would be 2^30 tensors."""
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        group = file["state"]
        for _ in range(30):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
        put_attribute(group.create_dataset("weight", (1,), data=[1.0]), "dtype", "float64")
    with pytest.raises(DataError, match=r"model\.h5 is damaged: /state/a.* has another name too"):
        load_model(path)


@pytest.mark.parametrize("again", ["/state/1.weight", "/state", "/"])
def test_nothing_has_two_names(tmp_path: Path, content: bytes, again: str) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        file["state/again"] = file[again]
    with pytest.raises(DataError, match=r"model\.h5 is damaged: /state.* has another name too"):
        load_model(path)


def test_tensors_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """40 datasets of 100 KB in a file of 120: each is whole for itself."""
    path, count, size = tmp_path / "model.h5", 40, 25_000
    with create(path, MODEL_FORMAT) as file:
        group = file.create_group("state")
        made = [group.create_dataset(f"{k}", (size,), "float32") for k in range(count)]
        for dataset in made:
            put_attribute(dataset, "dtype", "float32")
        for dataset in made:
            dataset[:] = 1
    with h5py.File(path) as file:
        offsets = [file[f"state/{k}"].id.get_offset() for k in range(count)]
    whole = bytearray(path.read_bytes())
    for offset in offsets[1:]:
        place = whole.index(struct.pack("<QQ", offset, 4 * size))
        struct.pack_into("<Q", whole, place, offsets[0])
    end = offsets[0] + 4 * size
    struct.pack_into("<Q", whole, 40, end)  # where the superblock says that the file ends
    path.write_bytes(whole[:end])
    with h5py.File(path) as file:
        assert file["state/39"][-1] == 1
    with pytest.raises(DataError, match=r"model\.h5 is damaged: its tensors claim more bytes"):
        load_model(path)


@pytest.mark.parametrize("name", ["a\x1b[2J", "/".join("a" * 40)])
def test_names_that_no_tensor_has(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "r+") as file:
        file[f"state/{name}"] = [1.0]
    with pytest.raises(DataError, match=r"model\.h5 is damaged: a tensor has the name") as refused:
        load_model(path)
    assert str(refused.value).isprintable()


def test_a_name_with_a_slash_comes_back(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a/b": nn.Linear(2, 3)})
    save_model(tmp_path / "model.h5", model, Config())
    found = load_model(tmp_path / "model.h5")
    assert {k: v.tolist() for k, v in found.items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nosuch.*model\.h5"):
        save_model(tmp_path / "nosuch" / "model.h5", nn.Linear(2, 2), Config())
