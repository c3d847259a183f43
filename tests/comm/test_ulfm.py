"""Who is left of a job, without MPI: whom a rank may end, and what it believes of others."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.ulfm import IDENTITY_BYTES, Members, _identity


class Told:
    """A communicator of rank 0 and others, who say of themselves what they are given to say."""

    rank = 0

    def __init__(self, *others: str) -> None:
        self.size = 1 + len(others)
        self._others = others

    def Get_group(self) -> None:
        pass

    def Allgather(self, mine: Any, every: Any) -> None:
        every[0] = mine
        for row, text in zip(every[1:], self._others, strict=True):
            row[:] = np.frombuffer(text.encode().ljust(IDENTITY_BYTES, b"\0"), dtype=np.uint8)


def members(*others: str) -> Members:
    comm: Any = Told(*others)
    return Members(SimpleNamespace(), comm)


def here(pid: int | str) -> str:
    """How a process of this node is known."""
    return _identity().replace(str(os.getpid()), str(pid), 1)


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**31, "", "x", "-20", "²", "1.5"])
def test_no_process_of_others_is_taken_for_a_rank(pid: int | str) -> None:
    """To kill -1 is to kill every process of this person."""
    with pytest.raises(ProtocolError, match="that begins with no process id"):
        members(here(os.getpid()), here(pid))


def test_text_that_is_no_identity() -> None:
    with pytest.raises(ProtocolError, match="rank 1 is known by ''"):
        members("")


def test_a_process_that_is_gone_has_been_ended() -> None:
    """As where another neighbour was asked to end it too."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = members(here(gone.pid), f"{gone.pid} 0 another.host")
    assert left.kill(1)
    assert not left.kill(2)
    assert not left.kill(0), "it does not end itself"
    assert not left.kill_all(), "one is left on another host"
    assert members(here(gone.pid)).kill_all()
