"""Faults on purpose: a job that is started with FEDMPI_FAULTS goes wrong where a person says.

    FEDMPI_FAULTS="kill rank=2 round=3 at=Train" mpirun -n 4 python -m fedmpi --rounds 5

Points are named after what happens there, `at=`:

- on a worker, a command's name (`Train`, `Broadcast`, `ReduceSum`, `Report`, `SetUp` ...): before
  the worker obeys it; with `:done` behind it, after it has;
- on rank 0, a command's name: before the owner sends it to the first worker of a round; `evaluate`,
  before the model is evaluated; `checkpoint` and `model`, before they are written;
- on any rank that ULFM left alive, `shrink`: before the living make a new communicator.

A round is that of the latest command that names one. Every fault happens once, and says so on
stderr; one that has not happened when its process ends says that. Nothing of this is loaded in a
job whose environment does not ask for it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedmpi.comm.launcher import launched
from fedmpi.comm.mpi import MpiTransport
from fedmpi.comm.threads import ThreadTransport
from fedmpi.comm.transport import Pending, Transport
from fedmpi.comm.ulfm import Members
from fedmpi.errors import UsageError
from fedmpi.federated import checkpoint, job
from fedmpi.study import recorded_run
from fedmpi.testing.fault import Fault, parse
from fedmpi.workers import worker as worker_module
from fedmpi.workers.command import Answer, Command, Entry, Reply
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import OWNER, Worker

T = TypeVar("T")
VARIABLE = "FEDMPI_FAULTS"
MOST_FILLED = 256 * 2**20
"""A larger file system is not one that was made to be filled."""


class _Gone:
    """What a sender sees of a message that was lost: it has left."""

    def done(self) -> bool:
        return True


class Faults:
    """The faults of a job, as one process sees them.

    Args:
        faults: of all ranks.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._waiting = list(faults)
        self._armed: dict[int, list[str]] = {}
        self._round: dict[int, int] = {}
        # Workers may be threads of one process.
        self._lock = threading.Lock()

    def reach(self, rank: int, point: str, command: Command | None = None) -> None:
        """What is to go wrong here does; the command may say which round it is."""
        with self._lock:
            number = getattr(command, "round", self._round.get(rank, 0))
            self._round[rank] = number
            due = [fault for fault in self._waiting if fault.is_at(rank, number, point)]
            for fault in due:
                self._waiting.remove(fault)
        for fault in due:
            where = f"rank {rank}, round {number}, {point}"
            print(f"fault: {fault.kind} on {where}", file=sys.stderr, flush=True)
            self._happen(fault, where)

    def tell_left(self) -> None:
        """Says which faults of this process have not happened, as after a typing error."""
        launch = launched()
        for fault in self._waiting:
            if launch is None or fault.rank == launch.rank:
                print(
                    f"fedmpi: rank {fault.rank}: the fault was not reached: {fault}",
                    file=sys.stderr,
                )

    def of_next_message(self, rank: int) -> str:
        """What is to happen to the message that a rank sends now; empty: nothing."""
        armed = self._armed.get(rank)
        return armed.pop(0) if armed else ""

    def _happen(self, fault: Fault, where: str) -> None:
        match fault.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "signal":
                os.kill(os.getpid(), signal.SIGUSR1)
            case "raise":
                raise RuntimeError(f"a fault on {where}")
            case "delay":
                time.sleep(fault.seconds)
            case "fill":
                fill(Path(fault.path))
            case "flip":
                flip(Path(fault.path))
            case _:
                self._armed.setdefault(fault.rank, []).append(fault.kind)


def fill(folder: Path) -> None:
    """Fills the file system of a folder with a file `filler` that stays there.

    Raises:
        UsageError: there is more than MOST_FILLED bytes of room: it was not made for this.
    """
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize > MOST_FILLED:
        raise UsageError(
            f"fault fill: {folder} has {room.f_bavail * room.f_frsize:,} bytes of room: mount a "
            f"tmpfs of at most {MOST_FILLED:,} there"
        )
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return  # it is full now


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    with open(path, "r+b") as file:
        middle = os.path.getsize(path) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 0x10]))


def install() -> None:
    """Puts the faults that the environment names into this process, for as long as it lives.

    Raises:
        UsageError: they cannot be read.
    """
    faults = Faults(parse(os.environ[VARIABLE]))
    atexit.register(faults.tell_left)
    _watch_worker(faults)
    _watch_owner(faults)
    _watch_members(faults)
    for transport in (MpiTransport, ThreadTransport):
        _watch_wire(transport, faults)


def _watch_worker(faults: Faults) -> None:
    entry_of = worker_module.entry_of

    def watched(command: Command) -> Entry:
        entry, name = entry_of(command), type(command).__name__

        # Within the handler: a fault that raises is then met as any other error of it.
        def handler(
            worker: Worker, command: Command, tensors: list[torch.Tensor]
        ) -> Reply | Answer | None:
            faults.reach(worker.rank, name, command)
            reply = entry.handler(worker, command, tensors)
            faults.reach(worker.rank, f"{name}:done", command)
            return reply

        return entry._replace(handler=handler)

    worker_module.entry_of = watched


def _watch_owner(faults: Faults) -> None:
    tell_all = Crew.tell_all

    # Every command goes this way; those to one worker too.
    def told(
        crew: Crew, ranks: Iterable[int], command: Command, tensors: Sequence[torch.Tensor] = ()
    ) -> None:
        faults.reach(OWNER, type(command).__name__, command)
        tell_all(crew, ranks, command, tensors)

    def reached_before(point: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def reached(*arguments: Any, **keywords: Any) -> Any:
            faults.reach(OWNER, point)
            return function(*arguments, **keywords)

        return reached

    Crew.tell_all = told  # type: ignore[method-assign, assignment]
    job.evaluate = reached_before("evaluate", job.evaluate)
    checkpoint.write_checkpoint = reached_before("checkpoint", checkpoint.write_checkpoint)
    recorded_run.save_model = reached_before("model", recorded_run.save_model)


def _watch_members(faults: Faults) -> None:
    shrunk = Members._shrunk

    def reached(members: Members, comm: Any) -> Any:
        faults.reach(members.me, "shrink")
        return shrunk(members, comm)

    Members._shrunk = reached  # type: ignore[method-assign, assignment]


def _watch_wire(kind: type[Transport], faults: Faults) -> None:
    note, buffer = kind.send_note, kind.send_buffer

    def send_note(transport: Transport, data: bytes, destination: int, tag: int) -> Pending:
        def send(data: bytes) -> Pending:
            return note(transport, data, destination, tag)

        return _spoiled(send, data, faults.of_next_message(transport.rank), _other_bytes)

    def send_buffer(
        transport: Transport, data: torch.Tensor, destination: int, tag: int
    ) -> Pending:
        def send(data: torch.Tensor) -> Pending:
            return buffer(transport, data, destination, tag)

        return _spoiled(send, data, faults.of_next_message(transport.rank), _other_tensor)

    kind.send_note = send_note  # type: ignore[method-assign, assignment]
    kind.send_buffer = send_buffer  # type: ignore[method-assign, assignment]


def _spoiled(send: Callable[[T], Pending], data: T, how: str, other: Callable[[T], T]) -> Pending:
    match how:
        case "drop":
            return _Gone()
        case "duplicate":
            send(data)
            return send(data)
        case "corrupt":
            return send(other(data))
        case _:
            return send(data)


def _other_bytes(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0x10
    return bytes(changed)


def _other_tensor(data: torch.Tensor) -> torch.Tensor:
    changed = data.clone()
    if len(changed):
        changed[len(changed) // 2] ^= 0x10
    return changed
