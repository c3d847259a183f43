"""A sentence for the person even when a launcher kills all ranks at once.

A rank that is lost takes the others with it: the launcher kills them with a signal that no
rank can catch, and what it prints itself says nothing of the job. So rank 0 starts a small
shell that outlives it for a moment. It reads lines from a pipe, and when the pipe closes it
prints the latest; an empty line means that there is nothing to say. The kernel closes the
pipe however rank 0 ends, so the shell never stays behind.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

# A session of its own and deaf ears: what is sent to the ranks' process groups passes it by.
_SHELL = """
trap '' HUP INT QUIT TERM PIPE
cd /
last=
while IFS= read -r line; do last=$line; done
if [ -n "$last" ]; then printf '%s\\n' "$last" >&2; fi
"""


class LastWords:
    """What is said on stderr if this process ends without a farewell.

    Attributes:
        status: how far the job has come; empty at first.
    """

    def __init__(self) -> None:
        self.status = ""
        self._pipe: int | None = None
        self._beside_launcher = False

    def listen(self, launcher: str) -> None:
        """Starts the shell; where there is none, there are no last words.

        To be called before MPI starts, which may not like its processes to fork.

        Args:
            launcher: its name. That of Open MPI stops forwarding what its ranks print before
                it ends them: for that one the shell prints where the launcher itself does.
        """
        reader, writer = os.pipe()
        # A shell that was stopped, and then a full pipe, must not stop the job.
        os.set_blocking(writer, False)
        errors = _errors_of_parent() if "Open MPI" in launcher else None
        try:
            subprocess.Popen(
                ["/bin/sh", "-c", _SHELL],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError:
            os.close(writer)
        else:
            self._pipe = writer
            self._beside_launcher = errors is not None
        finally:
            os.close(reader)
            if errors is not None:
                os.close(errors)
        self.keep("")

    def keep(self, status: str) -> None:
        """Keeps how far the job has come, in a clause; costs some microseconds."""
        self.status = status
        end = "fedmpi: rank 0 was ended from outside, or because another rank was lost"
        self._write(f"{end}: {status}" if status else end)

    def instead(self, sentence: str) -> bool:
        """Has the shell say a last sentence, where a launcher that ends its ranks would lose it.

        Returns:
            Whether it will; if not, this process has to say it.
        """
        if not self._beside_launcher:
            return False
        self._write(sentence)
        self._pipe = None  # no farewell after it; the pipe closes when the process ends
        return True

    def farewell(self) -> None:
        """This process ends by itself, and has said what there was to say."""
        self._write("")

    def _write(self, line: str) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe, f"{line}\n".encode())


def _errors_of_parent() -> int | None:
    """Stderr of the parent process, opened anew; None where that cannot be done safely."""
    parent = Path("/proc") / str(os.getppid())
    try:
        flags = (parent / "fdinfo" / "2").read_text().partition("flags:")[2].split()[0]
        # In a plain file, what it writes next would go over what we have written.
        if (parent / "fd" / "2").is_file() and not int(flags, 8) & os.O_APPEND:
            return None
        return os.open(parent / "fd" / "2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    except (OSError, IndexError, ValueError):
        return None


LAST_WORDS = LastWords()
"""This process's own; without `listen` it prints nothing."""
