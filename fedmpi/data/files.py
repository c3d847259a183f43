"""Writing a file so that it is there whole or not at all, and saying why it could not be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmpi.errors import DataError

BLOCK = 2**24
"""Bytes of a file that are hashed at a time: some milliseconds."""
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What h5py, gzip, zipfile and numpy were seen to raise on truncated files and flipped bits."""


def reason(error: BaseException) -> str:
    """Why an operation failed, in the system's words where it has some, on one printable line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split()) or type(error).__name__
    # HDF5 quotes names of the file as they are, a terminal's escape sequences among them.
    return text if text.isprintable() else repr(text)


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turns what libraries raise on a damaged file into a `DataError` that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"cannot read {where}: {reason(error)}") from error


def temporary_name(path: Path) -> Path:
    """A new name beside `path`, to write it under: `.NAME.tmp-RANDOM-HOST-PID`.

    Nobody can guess it, and put something there before.
    """
    writer = f"{secrets.token_hex(8)}-{socket.gethostname()}-{os.getpid()}"
    return path.parent / f".{path.name}.tmp-{writer}"


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote under a temporary name was on this host and is no more."""
    _, _, writer = temporary.name.rpartition(".tmp-")[2].partition("-")
    host, _, pid = writer.rpartition("-")
    return host == socket.gethostname() and pid.isdecimal() and not _alive(int(pid))


def remove_abandoned(folder: Path) -> None:
    """Removes from a folder what processes that were killed have left there half written.

    Raises:
        DataError: a file cannot be removed.
    """
    for path in folder.glob(".*.tmp-*"):
        if is_abandoned(path):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"cannot remove {path}: {reason(error)}") from error


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def atomic(path: str | Path, mode: int = 0o666) -> Iterator[Path]:
    """A temporary file beside `path`, which takes that name when the block succeeds.

    A reader sees the old file, or none, until the new one is whole and on the disk. When
    the block fails, nothing of it remains.

    Args:
        path: the file to write; its folder must exist.
        mode: permissions that it has from the start, as far as the umask leaves them.

    Yields:
        The temporary file, new and empty, to be written by the caller in place.

    Raises:
        DataError: the system refused (no folder, no permission, disk full), or somebody put
            another file in place of the temporary one.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        # Neither a file nor a link that somebody else has put there is ever written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode)
        try:
            yield temporary
            if not os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
                raise DataError(f"cannot write {path}: somebody replaced {temporary} meanwhile")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        # Some cluster file systems cannot fsync a folder; the file itself is safe already.
        with contextlib.suppress(OSError):
            _sync(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open`, which refuses a link."""
    return os.open(path, flags | os.O_NOFOLLOW)


def nothing() -> None:
    """What is done between two blocks by who need not show that it lives."""


def sha256(path: str | Path, between: Callable[[], None] = nothing) -> str:
    """SHA-256 of a file as 64 hex digits.

    Args:
        path: of the file.
        between: called after every block: a worker's sign of life.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            between()
    return digest.hexdigest()
