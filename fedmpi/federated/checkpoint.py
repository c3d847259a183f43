"""Checkpoints of a job: taken after a round, written while the next one trains."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedmpi.comm.signals import SIGNALS
from fedmpi.config import to_toml
from fedmpi.data.files import is_abandoned, reason, sha256
from fedmpi.errors import DataError, FedMPIError, ForeignFileError, Interrupted, RemoteError
from fedmpi.federated.checkpoint_file import (
    About,
    Checkpoint,
    ClientsFile,
    read_checkpoint,
    write_checkpoint,
)
from fedmpi.federated.client_memory import keep_memory, recall_memory
from fedmpi.federated.job import Job
from fedmpi.federated.remembered import State, restore, state_of

_FILE = re.compile(r"round-(\d{6,})\.h5")
_OF_ROUND = re.compile(r"round-(\d{6,})\.(h5|clients-\d+\.h5)")


@dataclass(frozen=True)
class _Taken:
    """What the owner carries after a round, copied."""

    round: int
    state: State


class Checkpoints:
    """The checkpoints of one run.

    The state is copied after every round, so that a round which is given up in the middle leaves
    something to write. What clients remember is written by the workers, between two rounds.

    Args:
        job: whose state it is.
        folder: where the files go; made when there is something to write.
        secure_records: called before a checkpoint takes its name; the records of its rounds are on
            the disk when it returns.
        say: told in a sentence of a checkpoint that cannot be written; the run goes on.

    Attributes:
        newest: round of the newest that has been written, 0 if there is none.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        secure_records: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._job = job
        self._folder = folder
        self._secure_records = secure_records
        self._say = say
        self._options = job.config.checkpoint
        self._text = to_toml(job.config)
        self._thread = ThreadPoolExecutor(1, "fedmpi-checkpoint")
        self._writing: Future[None] | None = None
        self._begun = time.monotonic()
        self._taken: _Taken | None = None
        self.newest = job.played

    def after_round(self, number: int) -> None:
        """Takes the state; writes it if it is time to, or leaves if a signal has asked for that.

        Raises:
            Interrupted: `leave` is to be called.
        """
        self._taken = _Taken(number, state_of(self._job.carried()))
        if SIGNALS.name:
            raise Interrupted(SIGNALS.name)
        if self.is_due(number):
            self._begin()

    def finish(self) -> None:
        """Writes the state after the last round, unless there are to be no checkpoints."""
        if self._options.every_rounds or self._options.every_minutes:
            self._begin()
        self.close()

    def leave(self) -> int:
        """Writes the state after the last round that has ended, if that can still be done.

        Returns the round of the newest checkpoint, 0 if there is none.

        Where clients remember something and a later round has begun, what they remember is no
        longer that of the round before: the newest checkpoint is what is left.

        Raises:
            DataError: it cannot be written.
        """
        self._settle()
        taken = self._taken
        if taken is not None and taken.round != self.newest:
            if not self._job.home.remember:
                self._write(taken, [])
            elif self._job.begun == taken.round and not self._job.crew.busy:
                self._write(taken, self._keep_memory(taken.round))
        return self.newest

    def close(self) -> None:
        """Waits until what is being written has been written."""
        self._settle()
        self._thread.shutdown()

    def path_of(self, number: int) -> Path:
        """The file of the checkpoint after a round."""
        return path_of(self._folder, number)

    def is_due(self, number: int) -> bool:
        """Whether there is to be a checkpoint after this round."""
        rounds, minutes = self._options.every_rounds, self._options.every_minutes
        late = minutes and time.monotonic() - self._begun >= 60 * minutes
        return bool(SIGNALS.name or late or (rounds and number % rounds == 0))

    def _begin(self) -> None:
        """Begins to write, once the one before has been written."""
        self._settle()
        taken = self._taken
        if taken is None or taken.round == self.newest:
            return
        self._begun = time.monotonic()
        try:
            clients = self._keep_memory(taken.round)
        except RemoteError as error:
            if error.remote_traceback:
                raise
            self._say(_failed(error))
            return
        except DataError as error:
            self._say(_failed(error))
            return
        self._writing = self._thread.submit(self._write, taken, clients)

    def _settle(self) -> None:
        """Waits for the writing thread, and says what went wrong there."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        except FedMPIError as error:
            self._say(_failed(error))
        # A signal that ends this wait leaves it to be waited for again.
        self._writing = None

    def _keep_memory(self, number: int) -> list[ClientsFile]:
        if not self._job.home.remember:
            return []
        _make(self._folder)
        return keep_memory(self._job.crew, self._folder, number)

    def _write(self, taken: _Taken, clients: list[ClientsFile]) -> None:
        _make(self._folder)
        job = self._job
        about = About(taken.round, self._text, job.dataset.name, clients, job.gone)
        self._secure_records()
        write_checkpoint(path_of(self._folder, taken.round), Checkpoint(about, taken.state))
        self.newest = taken.round
        kept = rounds_in(self._folder)[: self._options.keep]
        remove(self._folder, lambda number: number < kept[-1])


def path_of(folder: Path, number: int) -> Path:
    """The file of the checkpoint after a round."""
    return folder / f"round-{number:06}.h5"


def rounds_in(folder: Path) -> list[int]:
    """The rounds of which there is a checkpoint, the newest first."""
    if not folder.is_dir():
        return []
    found = (_FILE.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def remove(folder: Path, unwanted: Callable[[int], bool]) -> None:
    """Removes the checkpoints of some rounds, and what a process that was killed has left.

    Raises:
        DataError: a file cannot be removed.
    """
    if not folder.is_dir():
        return
    paths = sorted(folder.iterdir(), key=lambda path: len(path.name))  # the checkpoint goes first
    for path in paths:
        match = _OF_ROUND.fullmatch(path.name)
        left = path.name.startswith(".round-") and is_abandoned(path)
        if left or (match and unwanted(int(match[1]))):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"cannot remove {path}: {reason(error)}") from error


def resume(
    job: Job, folder: Path, check: Callable[[About, Path], None], say: Callable[[str], None]
) -> None:
    """Brings a job to where its newest checkpoint is that can be read; without any it begins anew.

    Those that are damaged are set aside as `NAME.damaged`.

    Args:
        job: that has not played a round.
        folder: of the checkpoints.
        check: refuses a checkpoint that is not of this run.
        say: told in a sentence of each that is damaged.

    Raises:
        UsageError: a checkpoint is of another run, of other data, or of another version.
        DataError: there are checkpoints, and none can be read; or one may be whole, and some rank
            cannot read it.
    """
    rounds = rounds_in(folder)
    unread: list[tuple[Path, FedMPIError]] = []
    for number in rounds:
        path = path_of(folder, number)
        try:
            checkpoint = read_checkpoint(path)
            check(checkpoint.about, path)
            recall_memory(job.crew, folder, checkpoint.about.clients, job.home.rank)
            restore(job.carried(), checkpoint.state)
        except ForeignFileError:
            raise
        except (DataError, RemoteError) as error:
            if isinstance(error, RemoteError) and error.remote_traceback:
                raise
            _refuse_unreadable(path, error)
            unread.append((path, error))
            continue
        about = checkpoint.about
        job.go_on_after(about.round, about.gone)
        if about.gone:
            say(f"going on without {len(about.gone)} clients that had died with a worker")
        break
    if unread and not job.played:
        raise DataError(
            f"no checkpoint in {folder} can be read ({unread[0][1]}): remove the folder to begin "
            "with the first round again"
        )
    for path, why in unread:
        try:
            path.replace(path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise DataError(f"cannot set {path} aside: {reason(error)}") from error
        say(f"{why}: set aside, going on from the checkpoint after round {job.played}")


def _refuse_unreadable(path: Path, error: FedMPIError) -> None:
    """Refuses to give up a checkpoint that may be whole: permissions, a folder that is away.

    Raises:
        DataError: its file cannot be read; or it and those of its clients are what was written.
    """
    _require_readable(path)
    try:
        clients = read_checkpoint(path).about.clients
        for entry in clients:
            _require_readable(path.parent / entry.file)
        whole = all(sha256(path.parent / entry.file) == entry.sha256 for entry in clients)
    except _Unreadable:
        raise
    except DataError:
        whole = False
    if whole:
        raise DataError(f"{path} is whole, but {error}; mend that and resume again")


class _Unreadable(DataError):
    """A file that is there; nobody knows what is in it."""


def _require_readable(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            while file.read(2**20):
                pass
    except FileNotFoundError:
        pass  # it is lost, and with it the checkpoint
    except OSError as error:
        raise _Unreadable(
            f"cannot read {path}: {reason(error)}; mend that and resume again"
        ) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {folder}: {reason(error)}") from error


def _failed(error: FedMPIError) -> str:
    return f"no checkpoint: {error}; the run goes on, and tries again when the next is due"
