"""A fault as a person writes it: what is to go wrong, on which rank, in which round, where.

kill rank=2 round=3 at=Train
delay rank=1 seconds=2 at=ReduceSum; corrupt rank=1 round=4 at=Report
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_type_hints

from fedmpi.errors import UsageError

KINDS = {
    "kill": "the process ends by SIGKILL, as when a node or the kernel's memory killer takes it",
    "stop": "the process stops by SIGSTOP and answers nothing any more",
    "signal": "the process is sent SIGUSR1, as by a batch system before its time limit",
    "raise": "an exception that nobody foresaw",
    "delay": "sleeps for `seconds`",
    "drop": "the next message that the rank sends is lost",
    "duplicate": "the next message that the rank sends is sent twice",
    "corrupt": "one bit of the next message that the rank sends is another",
    "fill": "fills the file system of the folder `path`, of at most MOST_FILLED bytes",
    "flip": "one bit in the middle of the file `path` is another",
}
"""What a fault may do, and what that is."""


@dataclass
class Fault:
    """Something that goes wrong once.

    Attributes:
        kind: one of KINDS.
        rank: on which it happens.
        round: in which it happens; 0: in any.
        at: the point, see `faults`; empty: the first that is reached.
        seconds: of a delay.
        path: of a folder to fill, or of a file to damage.
    """

    kind: str
    rank: int = 0
    round: int = 0
    at: str = ""
    seconds: float = 1.0
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"fault {self.kind!r}: expected one of {', '.join(KINDS)}")
        for name in ("rank", "round", "seconds"):
            if getattr(self, name) < 0:
                raise UsageError(f"fault {self.kind} with {name} = {getattr(self, name)}: below 0")
        if self.kind in ("fill", "flip") and not self.path:
            raise UsageError(f"fault {self.kind} without a path: add path=FOLDER_OR_FILE")

    def __str__(self) -> str:
        """As it was written."""
        given = (
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)[1:]
            if getattr(self, f.name) != f.default
        )
        return " ".join([self.kind, *given])

    def is_at(self, rank: int, number: int, point: str) -> bool:
        """Whether this is the place where it happens."""
        return self.rank == rank and self.round in (0, number) and (not self.at or self.at == point)


def parse(text: str) -> list[Fault]:
    """Faults from their text, one after another with semicolons between.

    Raises:
        UsageError: an unknown kind or key, or a value that is no number.
    """
    return [_one(words) for part in text.split(";") if (words := part.split())]


def _one(words: list[str]) -> Fault:
    types = get_type_hints(Fault)
    known = [f.name for f in fields(Fault) if f.name != "kind"]
    given: dict[str, int | float | str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in known or not equals:
            raise UsageError(f"fault {words[0]} with {word!r}: expected {'=, '.join(known)}=")
        try:
            given[key] = types[key](value)
        except ValueError:
            raise UsageError(f"fault {words[0]} with {word!r}: expected a number") from None
    return Fault(words[0], **given)  # type: ignore[arg-type]
