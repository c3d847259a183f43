"""The errors a person may meet: a leaf that every room imports."""


class FedMPIError(Exception):
    """Anything FedMPI refuses or cannot do, told in one sentence.

    The sentence names what was wrong, the values, and what would be right. The
    program prints it with the rank and ends the whole job with `exit_status`;
    a traceback is printed for every other exception only, since that is a bug.
    """

    exit_status = 1


class UsageError(FedMPIError):
    """A person's mistake: a wrong key, value, file, dataset or number of ranks."""

    exit_status = 2


class DataError(UsageError):
    """A file that is missing, damaged, foreign, or not what the job needs."""


class Suspended(FedMPIError):
    """A run that was asked to leave, and can go on later: EX_TEMPFAIL of sysexits.h."""

    exit_status = 75


class Interrupted(BaseException):
    """A signal that asks this process to leave, raised where it stands; its name is the argument.

    No `Exception`: nobody may take it for something that went wrong.
    """


class ForeignFileError(DataError):
    """A file that is whole, but of another kind or of a newer version."""


class SpoiledError(FedMPIError):
    """Updates that cannot be used, and a job that is to stop at that: training diverged."""


class RemoteError(FedMPIError):
    """The first error of a worker, raised at the owner's next wait.

    Attributes:
        rank: the worker's rank.
        remote_traceback: the traceback as the worker printed it; empty for a
            refusal (a `UsageError` there), which needs none.
        call: number of the operator's call that failed; 0 if it was something else.
        where: its host, and the round and the client that it was busy with, if it was.
    """

    def __init__(
        self,
        message: str,
        rank: int,
        remote_traceback: str = "",
        call: int = 0,
        where: str = "",
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.remote_traceback = remote_traceback
        self.call = call
        self.where = where


class LostRank(FedMPIError):
    """Ranks of the job have died: what the others were doing together is over.

    It ends the job, unless somebody can go on with the ranks that are left (`Crew.recover`).

    Attributes:
        ranks: the dead that are known so far, ascending; another may have noticed more.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class SilentRank(FedMPIError):
    """A rank that lives and does not answer, and cannot be ended alone."""


def printable(text: str) -> str:
    """Text whose control characters, but for line breaks and tabs, are written out.

    What a worker or a file says must not move the cursor of a person's terminal.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
