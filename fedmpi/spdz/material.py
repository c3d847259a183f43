"""The offline phase: what the dealer deals for a plan, computed beforehand and kept in a file.

A plan over shared tensors that brings its own masks needs nothing of its inputs' values, so the
dealer can run its part before there are any. The file holds the parties' keys and, for every run,
what the last party is to get. It belongs to the dealer: whoever reads it knows every mask.

    step.record(model, x).save("mlp.plan")             # made with fm.plan(masks_outside=False)
    fedmpi deal mlp.plan --parties 2 --runs 1000            # anywhere, one process
    with fm.material("mlp.plan.material", alice, bob) as material:
        step(model, x)                                      # takes the next run
    print(material)                                         # offline and online, apart
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import torch

import fedmpi.spdz.protocols.comparison  # noqa: F401 - the plan names its operators
from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import DTYPES, as_bytes
from fedmpi.data.files import reading, reason
from fedmpi.data.hdf5 import create, open_checked, plain_dataset
from fedmpi.errors import DataError, UsageError
from fedmpi.spdz.member import FIRST_OFFLINE, Dealer, UseMaterial, members
from fedmpi.spdz.stream import KEY_BYTES, new_key
from fedmpi.tensors.recorded_plan import RecordedPlan
from fedmpi.workers.operators import NAMESPACE
from fedmpi.workers.program import Program, Replay
from fedmpi.workers.signature import Signature

KIND = "fedmpi-material"

Frames = list[tuple[int, list[tuple[str, list[int]]]]]
"""Of a run: the step, and dtype and shape of each tensor that is sent at it."""


class _Beforehand(Dealer):
    """A dealer who keeps what it would send."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        super().__init__(None, range(1, len(keys) + 1), keys)  # type: ignore[arg-type]
        self.kept: list[tuple[int, list[torch.Tensor]]] = []

    def send(self, rank: int, channel: Channel, number: int, tensors: list[torch.Tensor]) -> None:
        self.kept.append((number, tensors))


def deal(
    plan: RecordedPlan,
    path: str | Path,
    parties: int,
    runs: int,
    progress: Callable[[int], None] = lambda run: None,
) -> None:
    """Deals for so many runs of a plan, and writes it to a file that its owner alone can read.

    Args:
        plan: over shared tensors, recorded without masks from outside.
        path: of the file; an old one is replaced.
        parties: how many will run it.
        runs: how many times.
        progress: told of each run that is done.

    Raises:
        UsageError: a plan that needs no dealer, or needs masks from outside; fewer than two
            parties or no run.
        DataError: the file cannot be written.
    """
    if parties < 2 or runs < 1:
        raise UsageError(f"parties = {parties}, runs = {runs}: expected at least 2 and 1")
    program = plan.signature
    group = _group_of(program, plan.name)
    keys = [new_key() for _ in range(parties)]
    # Another place for every file: a number stands for one call, whatever file it came from.
    first = FIRST_OFFLINE + secrets.randbelow(2**61)
    dealer = _Beforehand(keys)
    replay = Replay(program)
    inputs = [_nothing(one.at(0)) for one in plan.inputs]
    members()[group] = dealer
    started = time.perf_counter()
    try:
        with create(path, KIND, mode=0o600) as file:
            frames: Frames | None = None
            for run in range(runs):
                dealer.kept.clear()
                number = first + run * len(program.steps)
                try:
                    with torch.no_grad():
                        replay(inputs, (), number)
                except (RuntimeError, TypeError, ValueError) as error:
                    raise UsageError(
                        f"plan {plan.name} cannot be dealt for beforehand: it takes masks from "
                        "outside; make it with fm.plan(masks_outside=False)"
                    ) from error
                if frames is None:
                    frames = [(n - number, [_kind(t) for t in ts]) for n, ts in dealer.kept]
                    dataset = file.create_dataset("words", (runs, _length(dealer)), np.uint8)
                dataset[run] = _bytes(dealer)
                progress(run)
            file.create_dataset(
                "keys", data=np.frombuffer(b"".join(keys), np.uint8).reshape(parties, KEY_BYTES)
            )
            file.attrs.update(
                plan=plan.name,
                program=_digest(program),
                parties=parties,
                runs=runs,
                used=0,
                first=first,
                steps=len(program.steps),
                frames=json.dumps(frames),
                seconds=time.perf_counter() - started,
            )
    finally:
        del members()[group]


class Material:
    """Material of a file while a program uses it up.

    The file is locked as long, where the file system can do that: two programs that draw from it
    would take the same masks.

    Args:
        path: of the file that `fedmpi deal` wrote.

    Attributes:
        taken: runs so far.
        left: runs that are still there.
        offline_seconds: that dealing took, for all runs of the file.
        offline_bytes: dealt for each run.
        online_seconds: since it was opened.

    Raises:
        UsageError: the file is open to others, another program draws from it, or all runs were
            taken.
        DataError: it is missing, damaged, another kind of file, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            # Some network file systems lock only what is open for writing.
            self._locked = open(path, "r+b", buffering=0)  # noqa: SIM115 -- closed by close
        except OSError as error:
            raise DataError(f"cannot open {path}, to draw from it: {reason(error)}") from None
        try:
            self._open()
        except BaseException:
            self._locked.close()
            raise

    def _open(self) -> None:
        path = self.path
        open_checked(path, KIND).close()
        self._lock()
        # Opened once more: HDF5 keeps what it has read, of before the lock.
        with open_checked(path, KIND) as file, reading(path):
            attrs = dict(file.attrs)
            self.keys = [bytes(row) for row in plain_dataset(file, "keys")[:]]
            self.parties, self._runs = int(attrs["parties"]), int(attrs["runs"])
            self._next = int(attrs["used"])
            self.plan, self.program = str(attrs["plan"]), str(attrs["program"])
            self._first, self._steps = int(attrs["first"]), int(attrs["steps"])
            self.offline_seconds = float(attrs["seconds"])
            self._frames: Frames = json.loads(attrs["frames"])
            self.offline_bytes = int(plain_dataset(file, "words").shape[1])
        if self._next >= self._runs:
            raise UsageError(
                f"{path} is used up: all its {self._runs} runs were taken; deal again with "
                "`fedmpi deal`"
            )
        # A crash must not lead to a second use: all runs count as used until the end says less.
        self._note(self._runs)
        self._file = open_checked(path, KIND)
        self._start = self._next
        self._since = time.perf_counter()
        self.online_seconds = 0.0

    def _lock(self) -> None:
        """Refuses a file that is open to others, and keeps other programs from drawing."""
        mode = os.fstat(self._locked.fileno()).st_mode
        if mode & 0o077:
            raise UsageError(
                f"the material {self.path} is open to others (mode {mode & 0o777:o}): chmod 600 "
                "it, or deal again if somebody may have read its masks"
            )
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another program draws from {self.path}: wait for it, or deal more with "
                "`fedmpi deal`"
            ) from None
        except OSError:
            pass  # many cluster file systems cannot lock

    def __repr__(self) -> str:
        per_run = self.offline_seconds / self._runs
        online = (self.online_seconds or time.perf_counter() - self._since) / max(self.taken, 1)
        return (
            f"Material of plan {self.plan}: {self.taken} runs taken, {self.left} left; offline "
            f"{per_run:.4f} s and {self.offline_bytes:,} bytes a run, online {online:.4f} s a run"
        )

    @property
    def taken(self) -> int:
        return self._next - self._start

    @property
    def left(self) -> int:
        return self._runs - self._next

    def fits(self, program: Signature | Program) -> bool:
        """Whether it was dealt for that program."""
        return isinstance(program, Program) and _digest(program) == self.program

    def take(self) -> int:
        """The number of the next run.

        Raises:
            UsageError: all runs have been taken.
        """
        if not self.left:
            raise UsageError(
                f"{self.path} is used up after {self.taken} runs: deal more with `fedmpi deal`"
            )
        self._next += 1
        return self._first + (self._next - 1) * self._steps

    def frames(self) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """What the last party is to get in the run that was taken last, step by step."""
        with reading(self.path):
            words = torch.from_numpy(self._file["words"][self._next - 1])
        offset = 0
        for step, kinds in self._frames:
            tensors = []
            for name, shape in kinds:
                dtype = DTYPES[name]
                nbytes = torch.Size(shape).numel() * dtype.itemsize
                part = words[offset : offset + nbytes].clone()
                tensors.append(part.view(dtype).view(shape))
                offset += nbytes
            yield step, tensors

    def close(self) -> None:
        """Writes down how many runs were taken."""
        self.online_seconds = time.perf_counter() - self._since
        self._file.close()
        with self._locked:
            self._note(self._next)

    def _note(self, used: int) -> None:
        """Has the file say how many runs were taken, on the disk when this returns."""
        try:
            if not os.path.samestat(os.fstat(self._locked.fileno()), os.stat(self.path)):
                raise DataError(
                    f"{self.path} was replaced by another file while it was drawn from: draw from "
                    "the new one when this has ended"
                )
            with h5py.File(self.path, "r+", locking=False) as file:
                file.attrs["used"] = used
            os.fsync(self._locked.fileno())
        except OSError as error:
            raise DataError(
                f"cannot write into {self.path} how many runs were taken, so that none is taken "
                f"twice: {reason(error)}"
            ) from None


@contextmanager
def material(path: str | Path, *workers: Any) -> Iterator[Material]:
    """Has the runs of a plan take what was dealt for them beforehand.

    Args:
        path: of the file that `fedmpi deal` wrote.
        workers: the parties, in the order in which they share.

    Raises:
        UsageError: for another number of parties, and what `Material` refuses.
        DataError: as `Material`.
    """
    from fedmpi.spdz.group import group_of_workers

    group = group_of_workers(workers)
    dealt = Material(path)
    try:
        if dealt.parties != len(workers):
            raise UsageError(
                f"{path} was dealt for {dealt.parties} parties, but {len(workers)} are to use it"
            )
        for link, key in zip(group.links, dealt.keys, strict=True):
            link.tell(UseMaterial(group.number, key))
        group.material = dealt
        yield dealt
        for link in group.links:
            link.wait()
    finally:
        group.material = None
        dealt.close()


def _group_of(program: Program, name: str) -> int:
    """The number of the group that the operators of a program name last."""
    ours = [s for s in program.signatures if s.operator.startswith(f"{NAMESPACE}::")]
    if not ours:
        raise UsageError(f"plan {name} has no secret in it: there is nothing to deal for")
    return int(ours[0].arguments[-1])


def _nothing(there: Any) -> torch.Tensor:
    return torch.empty_strided(there.shape, there.stride, dtype=there.dtype, device="meta")


def _kind(tensor: torch.Tensor) -> tuple[str, list[int]]:
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def _length(dealer: _Beforehand) -> int:
    return sum(tensor.nbytes for _, tensors in dealer.kept for tensor in tensors)


def _bytes(dealer: _Beforehand) -> Any:
    parts = [as_bytes(t.contiguous()) for _, tensors in dealer.kept for t in tensors]
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.uint8)


def _digest(program: Program) -> str:
    return sha256(msgspec.msgpack.encode(program)).hexdigest()
