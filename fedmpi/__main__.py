"""Every rank starts here: rank 0 obeys the command line, all others obey rank 0.

An error on any rank is printed once, with the rank, and ends the whole job with a status
that is not 0.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NoReturn

from fedmpi.comm.last_words import LAST_WORDS
from fedmpi.comm.launcher import Launch, launched
from fedmpi.comm.rank_log import LOG, RANK_LOG
from fedmpi.comm.signals import SIGNALS
from fedmpi.errors import FedMPIError, RemoteError, Suspended, printable

if TYPE_CHECKING:
    from fedmpi.comm.endpoint import Endpoint
    from fedmpi.workers.crew import Crew


SECONDS_TO_SPEAK = 2.0
"""A rank that leaves the word to rank 0 stays for so long."""
SECONDS_BETWEEN_SPEAKERS = 0.5
"""After a bug on a rank, the next one waits so long with the same."""


def main() -> NoReturn:
    """Entry point of `python -m fedmpi` and of the `fedmpi` script."""
    # At its end the interpreter looks through all objects once more: 0.2 s with PyTorch's.
    atexit.register(gc.freeze)
    launch = launched()
    SIGNALS.listen()
    RANK_LOG.begin(launch.rank if launch else 0)
    status = _alone() if launch is None else _launched(launch)
    sys.stdout.flush()
    sys.stderr.flush()
    if status and launch is None:
        # Worker threads may be in the middle of a long step; nobody waits for them.
        os._exit(status)
    sys.exit(status)


def _alone() -> int:
    """One process: the workers, if the command needs any, are threads."""

    def lead() -> int:
        from fedmpi import cli

        _ask_for_faults()
        cli.main(sys.argv[1:], None, "")
        return 0

    return _status_of(lead, 0)


def _launched(launch: Launch) -> int:
    """One rank of a launch."""
    if launch.rank:
        # Ctrl-C reaches every rank of a terminal; rank 0 alone decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        LAST_WORDS.listen(launch.launcher)

    def take_part() -> int:
        gc.disable()
        from fedmpi.comm.endpoint import Endpoint
        from fedmpi.comm.mpi import MpiTransport
        from fedmpi.comm.time_slice import ask_for_long_turns

        _ask_for_faults()
        transport = MpiTransport(launch)
        if transport.ranks_on_node > transport.cores_on_node:
            ask_for_long_turns()
        endpoint = Endpoint(transport)
        status = _obey(endpoint) if transport.rank else _lead(endpoint, launch)
        transport.leave(status)
        return status

    return _status_of(take_part, launch.rank)


def _ask_for_faults() -> None:
    """In a job that is to go wrong on purpose, as `fedmpi.testing.faults` has it."""
    if "FEDMPI_FAULTS" in os.environ:
        from fedmpi.testing.faults import install

        install()


def _lead(endpoint: Endpoint, launch: Launch) -> int:
    crew: Crew | None = None

    def lead() -> int:
        from fedmpi import cli
        from fedmpi.workers.crew import Crew

        _imported()
        nonlocal crew
        crew = Crew(endpoint)
        cli.main(sys.argv[1:], crew, launch.launcher)
        return 0

    status = _status_of(lead, 0)
    if crew is None:
        endpoint.transport.abort(status)
    else:
        status = _part(crew, status)
    return status


def _part(crew: Crew, status: int) -> int:
    """Sends the workers home; returns the job's status."""
    parted = False

    def stop() -> int:
        nonlocal parted
        crew.stop(status)
        parted = True
        return status

    ended = _status_of(stop, 0)
    if not parted:
        crew.endpoint.transport.abort(ended)
    return ended


def _obey(endpoint: Endpoint) -> int:
    told_to_stop = False

    def serve() -> int:
        # The rooms that define commands: what is not imported is not in the table.
        import fedmpi.federated.obeyed
        import fedmpi.spdz.member
        import fedmpi.spdz.owned
        import fedmpi.spdz.traffic
        import fedmpi.study.bench_ranks
        import fedmpi.study.info
        import fedmpi.workers.load_shard
        import fedmpi.workers.logs
        import fedmpi.workers.operate
        import fedmpi.workers.seal
        import fedmpi.workers.shards  # noqa: F401
        from fedmpi.workers.worker import Worker

        _imported()
        nonlocal told_to_stop
        status = Worker(endpoint, _asks_for_seal(sys.argv[1:])).serve()
        told_to_stop = True
        return status

    status = _status_of(serve, endpoint.rank)
    if not told_to_stop:
        endpoint.transport.abort(status)
    return status


def _asks_for_seal(arguments: Sequence[str]) -> bool:
    """Whether the command line says so; what follows a script's name is the script's."""
    own = takewhile(lambda word: not word.endswith(".py"), arguments)
    said = [word for word in own if word in ("--secure-transport", "--no-secure-transport")]
    return said[-1:] == ["--secure-transport"]


def _imported() -> None:
    """Collects garbage from here on: imports leave none, and looking for it took them 0.2 s.

    What they have made stays to the end: no later collection has to look at it.
    """
    gc.freeze()
    gc.enable()


def _status_of(action: Callable[[], int], rank: int) -> int:
    """What the action returns, or the status of what it raises, told to the person."""
    try:
        return action()
    except FedMPIError as error:
        where = ""
        if isinstance(error, RemoteError):
            _say(error.remote_traceback.rstrip())
            where = f" ({error.where})" if error.where else ""
        sentence = f"fedmpi: rank {rank}: {error}{where}"
        if isinstance(error, Suspended) and LAST_WORDS.instead(sentence):
            pass  # the signal may be the launcher's, which no longer forwards what is printed
        elif str(error):
            LOG.error("%s%s", error, where)
            _say(sentence)
        else:
            # Rank 0 speaks for all, and a launcher may end it once another rank has left.
            time.sleep(SECONDS_TO_SPEAK)
        return error.exit_status
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        _say(": ".join(filter(None, [f"fedmpi: rank {rank}: interrupted", LAST_WORDS.status])))
        return 128 + signal.SIGINT
    except BaseException as error:
        trace = traceback.format_exc().rstrip()
        where = ", ".join([socket.gethostname(), *getattr(error, "__notes__", [])])
        LOG.error("%s", trace)
        # What fails on one rank may fail on all: the first to speak ends the others.
        time.sleep(min(rank * SECONDS_BETWEEN_SPEAKERS, SECONDS_TO_SPEAK))
        _say(
            f"fedmpi: rank {rank} ({where}): this is a bug in FedMPI or in your own code:\n{trace}"
        )
        return FedMPIError.exit_status
    finally:
        LAST_WORDS.farewell()


def _say(text: str) -> None:
    """Prints lines in one piece, so that those of other ranks do not come in between."""
    if text:
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
