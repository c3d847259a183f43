"""Signals that ask a job to leave: noted at once, obeyed where nothing is lost.

Python runs a signal's handler between two steps of the main thread, which no MPI call is. Before a
job has begun nothing can be lost: the handler raises `Interrupted`. While rounds are played it
notes the signal, and the job leaves at the end of the round; if that takes too long, an alarm
raises `Interrupted` in the middle of it. A worker only notes it, and tells the owner.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedmpi.errors import FedMPIError, Interrupted

CAUGHT = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
SECONDS = 5.0
"""A round that has so long to go after the signal is given up."""
AGAIN = 1.0
"""An exception that a handler raises may get lost (in a `__del__`): the alarm rings again."""


class Signals:
    """Those that this process has been sent.

    Attributes:
        name: of the first that asked to leave, such as "SIGUSR1"; empty if there was none.
    """

    def __init__(self) -> None:
        self.name = ""
        self._listening = self._at_once = self._patient = False

    def listen(self) -> None:
        """Notes signals from now on, which would have ended the process."""
        self._listening = True
        for number in CAUGHT:
            signal.signal(number, self._hear)

    def release(self) -> None:
        """Signals do again what they do to every program; one that has been noted does so now."""
        if not self._listening:
            return
        self._listening = False
        for number in CAUGHT:
            signal.signal(number, signal.SIG_DFL)
        if self.name:
            os.kill(os.getpid(), signal.Signals[self.name])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal, or one noted before, raises `Interrupted`."""
        if not self._listening:
            yield
            return
        self._at_once = True
        try:
            self._obey()
            yield
        finally:
            self._at_once = False

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the block signals, Ctrl-C among them, raise `Interrupted` after `SECONDS`.

        A Ctrl-C that follows a signal is a `KeyboardInterrupt`.
        """
        if not self._listening:
            yield
            return
        self._patient = True
        signal.signal(signal.SIGALRM, self._give_up)
        on_ctrl_c = signal.signal(signal.SIGINT, self._hear)
        try:
            self._obey()
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._patient = False
            signal.signal(signal.SIGINT, on_ctrl_c)

    def told(self, rank: int, name: str) -> None:
        """Another rank has been sent a signal.

        Raises:
            Interrupted: see `at_once`.
            FedMPIError: nobody listens: this program knows of no place to leave at.
        """
        if not self._listening:
            raise FedMPIError(f"rank {rank} was sent {name}")
        self._note(name)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name:
            raise KeyboardInterrupt
        self._note(signal.Signals(number).name)

    def _note(self, name: str) -> None:
        if not self.name:
            self.name = name
            self._obey()

    def _obey(self) -> None:
        if not self.name:
            return
        if self._at_once:
            raise Interrupted(self.name)
        if self._patient:
            signal.setitimer(signal.ITIMER_REAL, SECONDS, AGAIN)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self._patient:
            raise Interrupted(self.name)


SIGNALS = Signals()
"""This process's own; without `listen` it hears nothing."""
