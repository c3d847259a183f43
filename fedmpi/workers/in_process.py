"""Workers as threads of this process: levels 1 to 3, a debugger, tests without MPI."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fedmpi.comm.endpoint import Endpoint
from fedmpi.comm.threads import Aborted, Hub
from fedmpi.errors import FedMPIError, printable
from fedmpi.workers.crew import Crew
from fedmpi.workers.worker import Worker


@contextmanager
def in_process_crew(workers: int) -> Iterator[Crew]:
    """Starts worker threads and sends them home at the end.

    They are daemons: a worker in the middle of a long step does not keep a process that
    has to end.
    """
    hub = Hub(workers + 1)

    def serve(rank: int) -> None:
        try:
            Worker(Endpoint(hub.transport(rank))).serve()
        except Aborted:
            pass
        except BaseException as error:
            # Whatever it is, the owner must not wait for this rank any longer.
            if isinstance(error, FedMPIError):
                print(printable(f"fedmpi: rank {rank}: {error}"), file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
            hub.abort(1)

    threads = [
        threading.Thread(target=serve, args=(rank,), name=f"fedmpi-rank-{rank}", daemon=True)
        for rank in range(1, workers + 1)
    ]
    for thread in threads:
        thread.start()
    crew = Crew(Endpoint(hub.transport(0)))
    try:
        yield crew
    except BaseException:
        crew.stop(1)
        raise
    crew.stop(0)
    for thread in threads:
        thread.join()
