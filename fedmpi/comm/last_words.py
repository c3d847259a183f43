"""A sentence for the person even when a launcher kills all ranks at once.

A rank that is lost takes the others with it: the launcher kills them with a signal that no
rank can catch, and what it prints itself says nothing of the run. So rank 0 starts a small
shell that outlives it for a moment. It reads lines from a pipe, and when the pipe closes it
prints the latest line; an empty line means that there is nothing to say. The kernel closes
the pipe whichever way rank 0 ends, so the shell never stays behind.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

# A session of its own and deaf ears: what is sent to a rank's process group passes it by.
_SHELL = """
trap '' HUP INT QUIT TERM PIPE
cd /
last=
while IFS= read -r line; do last=$line; done
if [ -n "$last" ]; then printf '%s\\n' "$last" >&2; fi
"""


class LastWords:
    """What is printed on stderr if this process ends without `farewell`."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    def listen(self) -> None:
        """Starts the shell; call it before MPI starts, which does not like its processes to fork.

        Where there is no shell, there are no last words.
        """
        reader, writer = os.pipe()
        # A full pipe (a shell that was stopped) must not stop the job.
        os.set_blocking(writer, False)
        try:
            subprocess.Popen(
                ["/bin/sh", "-c", _SHELL],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(writer)
        else:
            self._pipe = writer
        finally:
            os.close(reader)

    def leave(self, sentence: str) -> None:
        """Replaces the last words; a single system call of a few microseconds."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe, f"{sentence}\n".encode())

    def farewell(self) -> None:
        """This process ends by itself, and has said what there was to say."""
        self.leave("")


LAST_WORDS = LastWords()
"""This process's own; nothing is printed unless it listens."""
