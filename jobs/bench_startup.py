"""Where the time goes until the first round has ended: of every rank, by phase.

    python -m jobs.bench_startup --ranks 8        (make bench-startup ARGS="--ranks 8")

Starts itself under mpirun, so that each rank can look at the clock between the steps that
`python -m fedmpi` takes: the interpreter, PyTorch, MPI, FedMPI's own modules, the data, the first
round, and the end. The job is 2NN on the 5,000 digits that need no download. `--collect` leaves
the garbage collector on while modules are imported, as Python does by itself.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.launched import launch

RANK = "--as-a-rank"
COMMANDS = (["--version"], ["--help"], ["run", "--help"], ["info"])
"""That start no workers."""


def age() -> float:
    """Seconds since this process was started, to 10 ms, as the kernel counts them."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def be_a_rank(folder: Path, shards: str, collect: bool) -> None:
    """One rank: what `fedmpi.__main__` does, with a look at the clock after each step."""
    seconds = {"interpreter": age()}
    last = time.perf_counter()

    def ended(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[phase], last = now - last, now

    if not collect:
        atexit.register(gc.freeze)
        gc.disable()
    import torch  # noqa: F401

    ended("import torch")
    from fedmpi.comm.endpoint import Endpoint
    from fedmpi.comm.launcher import launched
    from fedmpi.comm.mpi import MpiTransport

    ended("import comm")
    transport = MpiTransport(launched())
    ended("start MPI")
    import fedmpi.federated.obeyed  # noqa: F401
    from fedmpi.config import Config, DataConfig, FederatedConfig
    from fedmpi.federated.job import Job, Observer
    from fedmpi.workers.crew import Crew
    from fedmpi.workers.worker import Worker

    ended("import fedmpi")
    if not collect:
        gc.freeze()
        gc.enable()
    endpoint = Endpoint(transport)
    if transport.rank:
        Worker(endpoint).serve()
        ended("work")
    else:
        crew = Crew(endpoint)
        federated = FederatedConfig(rounds=1, epochs=1)
        job = Job(Config(data=DataConfig(path=shards), federated=federated), crew)
        ended("set up data and model")
        job.run(Observer(lambda metrics: None, lambda clients: None))
        ended("first round")
        crew.stop(0)
    (folder / f"{transport.rank}.json").write_text(json.dumps(seconds))


def measure(chosen: argparse.Namespace, scratch: Path) -> None:
    """Prints the tables."""
    from fedmpi.config import Recipe
    from fedmpi.workers.shards import prepare

    prepare(Recipe(clients=100), chosen.ranks - 1, scratch / "shards", None)
    totals, phases = [], dict[str, list[float]]()
    for repeat in range(chosen.repeats):
        folder = scratch / str(repeat)
        folder.mkdir()
        options = [RANK, str(folder), str(scratch / "shards")]
        options += ["--collect"] if chosen.collect else []
        begun = time.perf_counter()
        launch(chosen.ranks, "-m", "jobs.bench_startup", *options)
        totals.append(time.perf_counter() - begun)
        for file in folder.glob("*.json"):
            for phase, seconds in json.loads(file.read_text()).items():
                phases.setdefault(phase, []).append(seconds)
    collecting = "on" if chosen.collect else "off"
    print(f"{chosen.ranks} ranks on {os.cpu_count()} cores, collector {collecting} in imports")
    for phase, found in phases.items():
        if phase != "work":
            print(f"  {phase:<24}{statistics.median(found):7.2f} s    most {max(found):6.2f} s")
    print(f"  {'all of mpirun':<24}{statistics.median(totals):7.2f} s    most {max(totals):6.2f} s")
    for command in COMMANDS:
        found = []
        for _ in range(chosen.repeats):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "fedmpi", *command], check=True, stdout=subprocess.DEVNULL
            )
            found.append(time.perf_counter() - begun)
        print(f"python -m fedmpi {' '.join(command):<13}{statistics.median(found):7.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=8, help="of mpirun, 2 or more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--collect", action="store_true", help="as Python does by itself")
    parser.add_argument(RANK, nargs=2, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_a_rank:
        be_a_rank(Path(chosen.as_a_rank[0]), chosen.as_a_rank[1], chosen.collect)
        return
    with tempfile.TemporaryDirectory(prefix="fedmpi-startup-") as scratch:
        measure(chosen, Path(scratch))


if __name__ == "__main__":
    main()
