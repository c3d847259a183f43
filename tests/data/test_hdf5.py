from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

import fedmpi
from fedmpi.data import files, hdf5
from fedmpi.data.files import atomic, reading, reason, sha256
from fedmpi.data.hdf5 import create, open_checked, plain_dataset, put_attribute
from fedmpi.errors import DataError


def save(path: Path, version: int = 1) -> None:
    with create(path, "fedmpi-shard", version) as file:
        file["group/x"] = np.arange(1000)


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    save(tmp_path / "a.h5")
    with open_checked(tmp_path / "a.h5", "fedmpi-shard") as file:
        assert dict(file.attrs) == {
            "format": b"fedmpi-shard",
            "version": 1,
            "created_by": f"FedMPI {fedmpi.__version__}".encode(),
        }
        assert plain_dataset(file, "group/x")[5] == 5
    assert os.listdir(tmp_path) == ["a.h5"]


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.h5")
    save(tmp_path / "b.h5")
    assert sha256(tmp_path / "a.h5") == sha256(tmp_path / "b.h5")


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    save(tmp_path / "a.h5")
    before = sha256(tmp_path / "a.h5")

    def fail() -> None:
        with create(tmp_path / "a.h5", "fedmpi-shard") as file:
            file["x"] = np.zeros(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == ["a.h5"]
    assert sha256(tmp_path / "a.h5") == before


def test_the_name_appears_at_the_end_only(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        [name] = os.listdir(tmp_path)
        assert re.fullmatch(
            rf"\.a\.txt\.tmp-[0-9a-f]{{16}}-{re.escape(socket.gethostname())}-{os.getpid()}", name
        )
    assert os.listdir(tmp_path) == ["a.txt"]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as one, atomic(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_permissions_are_there_from_the_start(tmp_path: Path, mode: int) -> None:
    umask = os.umask(0o022)
    try:
        with atomic(tmp_path / "a.txt", mode) as temporary:
            assert temporary.stat().st_mode & 0o777 == mode & ~0o022
        with create(tmp_path / "a.h5", "fedmpi-shard", mode=mode):
            [temporary] = tmp_path.glob(".a.h5.tmp-*")
            assert temporary.stat().st_mode & 0o777 == mode & ~0o022
    finally:
        os.umask(umask)
    for name in ("a.txt", "a.h5"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode & ~0o022


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_text("untouched")
    return path


@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_what_lies_under_the_temporary_name_is_not_written_to(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[..., None]
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    plant(victim, files.temporary_name(tmp_path / "a.h5"))
    with pytest.raises(DataError, match=r"cannot write .*a\.h5: File exists"):
        save(tmp_path / "a.h5")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "a.h5").exists()


def test_a_link_to_nowhere_is_not_followed(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    files.temporary_name(tmp_path / "a.h5").symlink_to(victim.parent / "new")
    with pytest.raises(DataError, match=r"cannot write .*a\.h5: File exists"):
        save(tmp_path / "a.h5")
    assert os.listdir(victim.parent) == ["victim"]


def test_what_is_put_in_place_of_the_temporary_file_gets_no_name(
    tmp_path: Path, victim: Path
) -> None:
    def replaced() -> None:
        with atomic(tmp_path / "a") as temporary:
            temporary.unlink()
            temporary.symlink_to(victim)

    with pytest.raises(DataError, match="somebody replaced"):
        replaced()
    assert os.listdir(tmp_path) == ["elsewhere"]
    assert victim.read_text() == "untouched"


def test_hdf5_does_not_write_through_a_link_that_comes_late(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def swapped(path: Path, mode: int) -> Iterator[Path]:
        with atomic(path, mode) as temporary:
            temporary.unlink()
            temporary.symlink_to(victim)
            yield temporary

    monkeypatch.setattr(hdf5, "atomic", swapped)
    with pytest.raises(DataError, match=r"cannot write .*a\.h5: Too many levels of symbolic"):
        save(tmp_path / "a.h5")
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_names_that_are_none(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot write"), atomic(path):
        pass
    assert os.listdir(tmp_path) == []


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write .*/none/a.h5: No such file or directory"):
        save(tmp_path / "none" / "a.h5")


# A full disk made HDF5 crash at the interpreter's exit, hence a process of its own.
WRITE = """
import sys
import numpy as np
from fedmpi.data.hdf5 import create
from fedmpi.errors import DataError
if sys.argv[2] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, 256 * 1024))
try:
    with create(sys.argv[1], "fedmpi-shard") as file:
        if sys.argv[3] == "blocks":
            x = file.create_dataset("x", (int(sys.argv[4]),), "uint8")
            for start in range(0, len(x), 1000):
                x[start : start + 1000] = 1
        else:
            file["x"] = np.ones(int(sys.argv[4]), np.uint8)
except DataError as error:
    print(error)
"""


def write_too_much(path: Path, limit: str, how: str, size: int) -> str:
    command = [sys.executable, "-c", WRITE, str(path), limit, how, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# 261,000 bytes leave room for the rows but not for the metadata, written at the close.
@pytest.mark.parametrize("how", ["blocks", "at once"])
@pytest.mark.parametrize("size", [261_900, 10_000_000])
def test_a_file_too_large(tmp_path: Path, how: str, size: int) -> None:
    path = tmp_path / "a.h5"
    assert write_too_much(path, "limit", how, size) == f"cannot write {path}: File too large"
    assert os.listdir(tmp_path) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user cannot mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("how", ["blocks", "at once"])
@pytest.mark.parametrize("size", [261_900, 10_000_000])
def test_a_full_disk(full_disk: Path, how: str, size: int) -> None:
    path = full_disk / "a.h5"
    expected = f"cannot write {path}: No space left on device"
    assert write_too_much(path, "no limit", how, size) == expected
    assert os.listdir(full_disk) == []


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*/a.h5: No such file"):
        open_checked(tmp_path / "a.h5", "fedmpi-shard")


def test_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("name,value\n" * 1000)
    with pytest.raises(DataError, match=r"a.h5 is not an HDF5 file"):
        open_checked(tmp_path / "a.h5", "fedmpi-shard")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, part: float) -> None:
    save(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"a.h5 is truncated"):
        open_checked(tmp_path / "a.h5", "fedmpi-shard")


def test_foreign_format(tmp_path: Path) -> None:
    save(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"expected the format 'fedmpi-test', found 'fedmpi-shard'"):
        open_checked(tmp_path / "a.h5", "fedmpi-test")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(DataError, match=r"b.h5: expected the format 'fedmpi-test', found None"):
        open_checked(tmp_path / "b.h5", "fedmpi-test")


def test_newer_version(tmp_path: Path) -> None:
    save(tmp_path / "a.h5", version=3)
    with pytest.raises(
        DataError, match=r"version 1 or older, found version 3; read it with .*wrote"
    ):
        open_checked(tmp_path / "a.h5", "fedmpi-shard")
    open_checked(tmp_path / "a.h5", "fedmpi-shard", version=3).close()


@pytest.mark.parametrize("name", ["format", "version", "created_by"])
def test_attributes_that_a_terminal_would_obey(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.h5", version=3)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        put_attribute(file, name, "\x1b[2J")
    with pytest.raises(DataError) as refused:
        open_checked(tmp_path / "a.h5", "fedmpi-shard")
    assert str(refused.value).isprintable()


def test_words_of_any_length_are_not_followed(tmp_path: Path) -> None:
    """HDF5 was seen to crash, and to read for ever, where the reference to one is damaged."""
    save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["format"] = "fedmpi-shard"
    with pytest.raises(DataError, match="found None; an earlier FedMPI may have written it"):
        open_checked(tmp_path / "a.h5", "fedmpi-shard")


def test_reasons_are_printable() -> None:
    assert reason(RuntimeError("object '\x1b[2J' \n is gone")).isprintable()
    assert reason(RuntimeError("gone")) == "gone"


def test_only_plain_datasets(tmp_path: Path) -> None:
    save(tmp_path / "other.h5")
    (tmp_path / "raw").write_bytes(bytes(80))
    layout = h5py.VirtualLayout((1000,), "int64")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "group/x", (1000,), "int64")
    with create(tmp_path / "a.h5", "fedmpi-shard") as file:
        file["link"] = h5py.ExternalLink("other.h5", "group/x")
        file["soft"] = h5py.SoftLink("/link")
        file["folder"] = h5py.ExternalLink("other.h5", "group")
        file.create_dataset("external", (10,), "int64", external=[(str(tmp_path / "raw"), 0, 80)])
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("chunked", data=np.arange(10), chunks=(5,))
        file.create_dataset("compressed", data=np.arange(10), compression="gzip")
        file.create_group("group")
    refusals = {
        "link": "is a link to elsewhere",
        "soft": "is a link to elsewhere",
        "folder/x": "is a link to elsewhere",
        "external": "keeps its data in another file",
        "virtual": "keeps its data in another file",
        "chunked": "is chunked or compressed",
        "compressed": "is chunked or compressed",
        "group": "is a group",
        "none": "is missing",
        "group/none": "is missing",
        "chunked/none": "is missing",
    }
    with open_checked(tmp_path / "a.h5", "fedmpi-shard") as file:
        for name, message in refusals.items():
            with pytest.raises(DataError, match=f"a.h5: /{name} {message}"):
                plain_dataset(file, name)


def test_sha256_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: No such file"):
        sha256(tmp_path / "none")


@pytest.mark.parametrize("error", [MemoryError("16 TiB"), OverflowError("16 TiB")])
def test_what_damaged_numbers_raise_is_told(error: Exception) -> None:
    with pytest.raises(DataError, match=r"cannot read a.h5: 16 TiB"), reading("a.h5"):
        raise error
