"""The ranks of an MPI job of which some may die, by User Level Failure Mitigation (ULFM).

Bland et al. 2013, "Post-failure recovery of MPI communication capability: Design and rationale".
A communicator in which a rank has died is revoked by the first who notices; every rank then
leaves what it was doing, and the living shrink it to one of their own.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.last_words import LAST_WORDS
from fedmpi.comm.meeting import Meeting
from fedmpi.comm.waiting import Awake, wait_until
from fedmpi.errors import FedMPIError, LostRank

if TYPE_CHECKING:
    from mpi4py import MPI

ENABLED = "OMPI_MCA_mpi_ft_enable"
"""What `mpirun --with-ft ulfm` tells its ranks."""
SECONDS_BETWEEN_LOOKS = 0.1
"""A rank that waits for a living one asks so often whether another has died."""
SECONDS_TO_LEARN = 2.0
"""Who is told that something has died learns within this time what."""
IDENTITY_BYTES = 128
"""Of the text by which a rank is known to the others."""
SECONDS_TO_SHRINK = 20.0
"""Those who have come make a communicator in milliseconds; who stops in these is not found."""
SECONDS_BETWEEN_SPEAKERS = 0.5
"""Whoever gives up first ends the others of its node, so that the sentence is said once."""
SECONDS_TO_PART = 10.0
"""A process that has done its work waits so long for the others that have."""


def survives(mpi: Any) -> bool:
    """Whether this job goes on when a rank dies: found out by trying, and by asking the launcher.

    Open MPI has the calls in any case, but they notice nothing unless `mpirun --with-ft ulfm`
    started the job, which says so in the environment.
    """
    if os.environ.get(ENABLED, "0").lower() not in ("1", "true", "yes"):
        return False
    own = mpi.COMM_SELF.Dup()
    try:
        own.Revoke()
        found = own.Is_revoked() and own.Agree(1) == 1 and own.Shrink().size == 1
    except (NotImplementedError, mpi.Exception):
        found = False
    return bool(found)


class Members:
    """Who is left of the ranks of a job. Ranks keep their numbers, whatever their places become.

    Args:
        mpi: mpi4py's module.
        comm: of all ranks.

    Attributes:
        me: this rank.
        hosts: name of the node of each rank.
    """

    def __init__(self, mpi: Any, comm: MPI.Intracomm) -> None:
        self._mpi = mpi
        self._comm = comm
        self._all = comm.Get_group()
        self._ranks = list(range(comm.size))
        self._places = list(range(comm.size))
        self._next_look = 0.0
        self._meetings = 0
        self.me = comm.rank
        self._launcher = os.getppid()
        told = _told_to_all(comm, _identity())
        found = [_read_identity(text, rank) for rank, text in enumerate(told)]
        self._pids = [pid for pid, _, _ in found]
        self._spaces = [space for _, space, _ in found]
        self.hosts = [host for _, _, host in found]

    def place(self, rank: int) -> int:
        """Where a rank stands in the communicator of the living.

        Raises:
            LostRank: it is dead.
        """
        place = self._places[rank]
        if place < 0:
            raise self._sentence((rank,))
        return place

    def rank(self, place: int) -> int:
        """Who stands at a place."""
        return self._ranks[place]

    def look(self) -> None:
        """Looks from time to time whether anybody has died.

        Raises:
            LostRank: somebody has.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._require_launcher()
        if self._comm.Is_revoked() or self._dead():
            raise self._lost()

    def lost(self, error: MPI.Exception) -> LostRank | None:
        """What an error of MPI means if it is that a rank has died; None: it is another."""
        mpi, kind = self._mpi, error.Get_error_class()
        if kind in (mpi.ERR_PROC_FAILED, mpi.ERR_PROC_FAILED_PENDING, mpi.ERR_REVOKED):
            return self._lost()
        # What it was that failed is told later than that something has.
        return self._lost() if self._learn() else None

    def shrink(
        self, comm: MPI.Intracomm, limit: float, report: Callable[[int], None]
    ) -> tuple[MPI.Intracomm, list[int]]:
        """The communicator of the living, who all call this, and the ranks lost since the last.

        Args:
            comm: of those that were left.
            limit: see `Meeting`.
            report: see `Meeting`.

        Raises:
            FedMPIError: some of the living did not come. It cannot be called again then.
        """
        comm.Revoke()
        self._meetings += 1
        self._meet(comm, Meeting(self._mpi, self, self._meetings, limit, report))
        self._comm = self._shrunk(comm)
        places = range(self._comm.size)
        living = self._mpi.Group.Translate_ranks(self._comm.Get_group(), places, self._all)
        lost = sorted(set(self._ranks) - set(living))
        self._ranks = list(living)
        self._places = [-1] * len(self._places)
        for place, rank in enumerate(living):
            self._places[rank] = place
        comm.Free()
        return self._comm, lost

    def _shrunk(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        """`Shrink` waits for all that came, and asks nobody back: a thread looks at the clock."""
        speaks = SECONDS_TO_SHRINK + SECONDS_BETWEEN_SPEAKERS * min(self.place(self.me), 4)
        clock = threading.Timer(speaks, self._give_up)
        clock.daemon = True
        clock.start()
        try:
            return self._mpi.Intracomm(comm.Shrink())
        finally:
            clock.cancel()

    def _give_up(self) -> None:
        """Ends the job; the thread that is in `Shrink` never comes back."""
        sentence = (
            f"fedmpi: rank {self.me}: a rank has died, and another stopped when the living had "
            f"come together, {SECONDS_TO_SHRINK:.0f} s ago: the job ends, resume it"
        )
        if not LAST_WORDS.instead(sentence):
            print(sentence, file=sys.stderr, flush=True)
        self.kill_all()
        os._exit(1)

    @property
    def living(self) -> list[int]:
        """Ranks that have not died, as far as is known here, ascending."""
        dead = self._dead()
        return [rank for rank in self._ranks if rank not in dead]

    @property
    def fewer(self) -> bool:
        """Whether anybody has died since the job began."""
        return len(self._ranks) < len(self._places) or self.broken

    @property
    def broken(self) -> bool:
        """Whether somebody has died since the last `shrink`."""
        return bool(self._comm.Is_revoked() or self._dead())

    def part(self) -> None:
        """Waits for the others before this process ends: who leaves early looks like the dead."""
        request = self._comm.Ibarrier()
        deadline = time.monotonic() + SECONDS_TO_PART

        def parted() -> bool | None:
            try:
                return request.Test() or time.monotonic() > deadline or None
            except self._mpi.Exception:
                return True  # somebody has left already, and so may this one

        wait_until(parted, spin=False)

    def kill_all(self) -> bool:
        """Ends all others of this node: in this mode `Abort` was seen to leave some behind.

        Returns:
            Whether nobody is left elsewhere.
        """
        elsewhere = [rank for rank in self._ranks if not self.kill(rank) and rank != self.me]
        return not elsewhere

    def kill(self, rank: int) -> bool:
        """Ends the process of another rank at once, if it is on this node; whether it is."""
        mine = self.hosts[self.me], self._spaces[self.me]
        if (self.hosts[rank], self._spaces[rank]) != mine or rank == self.me:
            return False
        # Several neighbours may be asked to end the same one, and it may have been reaped.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[rank], signal.SIGKILL)
        return True

    def _require_launcher(self) -> None:
        """Nobody would say any more who dies, nor end this process.

        Raises:
            FedMPIError: the launcher is gone.
        """
        if os.getppid() != self._launcher:
            raise FedMPIError("the launcher has died, and with it the job")

    def _meet(self, comm: MPI.Intracomm, meeting: Meeting) -> None:
        """Waits politely for the living: `Shrink` itself would poll at full speed, for ever."""
        request = comm.Iagree(array.array("i", [1]))
        awake = Awake()

        def agreed() -> bool | None:
            try:
                done = request.Test()
            except self._mpi.Exception as error:
                # The agreement reports the dead, after all the living have taken part.
                if error.Get_error_class() != self._mpi.ERR_PROC_FAILED:
                    raise
                return True
            if not done:
                self._require_launcher()
                meeting.attend(awake.look())
            return done or None

        wait_until(agreed, spin=False)

    def _dead(self) -> tuple[int, ...]:
        group = self._comm.Get_failed()
        places = range(group.size)
        dead = self._mpi.Group.Translate_ranks(group, places, self._all) if group.size else ()
        group.Free()
        return tuple(sorted(dead))

    def _lost(self) -> LostRank:
        """Tells all others, and says who is dead."""
        self._comm.Revoke()
        self._learn()
        return self._sentence(self._dead())

    def _learn(self) -> bool:
        """Gives MPI time to notice who has died; whether anybody has, as far as is known."""
        deadline = time.monotonic() + SECONDS_TO_LEARN
        while not (dead := self._dead()) and time.monotonic() < deadline:
            self._mpi.COMM_SELF.Iprobe()  # what drives MPI's progress
            time.sleep(0.01)
        return bool(dead) or self._comm.Is_revoked()

    def _sentence(self, dead: tuple[int, ...]) -> LostRank:
        named = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in dead)
        return LostRank(f"lost {named or 'a rank'}: its process has died", dead)


def _identity() -> str:
    """Process id, the name space in which it counts (a container has its own), and host."""
    return f"{os.getpid()} {os.stat('/proc/self/ns/pid').st_ino} {socket.gethostname()}"


def _read_identity(text: str, rank: int) -> tuple[int, str, str]:
    """What `_identity` says of a rank.

    Raises:
        ProtocolError: no process of a job has such an id; to kill 0, 1 or less is to kill others.
    """
    pid, space, host = [*text.split(" ", 2), "", ""][:3]
    if not (pid.isascii() and pid.isdecimal() and 2 <= int(pid) < 2**31):
        raise ProtocolError(f"rank {rank} is known by {text!r}: that begins with no process id")
    return int(pid), space, host


def _told_to_all(comm: MPI.Intracomm, text: str) -> list[str]:
    """The texts of all ranks; what is beyond `IDENTITY_BYTES` is cut off."""
    mine = np.zeros(IDENTITY_BYTES, dtype=np.uint8)
    raw = np.frombuffer(text.encode()[:IDENTITY_BYTES], dtype=np.uint8)
    mine[: len(raw)] = raw
    every = np.zeros((comm.size, IDENTITY_BYTES), dtype=np.uint8)
    comm.Allgather(mine, every)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in every]
