"""Peak memory of each rank against the number of clients, all of them in every round.

    python -m jobs.memory        (make memory ARGS="--out FOLDER")

Real runs, `mpirun -n 3 python -m fedmpi`: McMahan's 2NN, E = 1, B = 10, 2 rounds, on 20,000 rows of
28 x 28 random pixels that 10, 100, 1,000 and 10,000 clients share: the rows are always as many, so
that what grows is what clients cost. RSS is the kernel's own peak (VmHWM), shared libraries
included; USS is what a rank has for itself, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jobs.launched import mpirun

ROWS = 20_000
RANKS = 3
PARAMETERS = 199_210
"""Of the 2NN: a model of float32 has 0.8 MB, its exact sum 1.6 MB."""
LOOK_SECONDS = 0.1

Peaks = dict[int, tuple[float, float]]
"""MiB of RSS and of USS, by rank."""


def numbers(text: str, *names: str) -> float:
    """MiB of these lines of a file of /proc, added."""
    found = [re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in names]
    return sum(int(match[1]) for match in found if match) / 1024


def look(peaks: Peaks, mark: str) -> None:
    """Raises the peaks to what the living ranks of the job have now."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(
                word.partition("=")[::2]
                for word in (folder / "environ").read_text(errors="replace").split("\0")
            )
            rank = environment.get("PMI_RANK") or environment.get("OMPI_COMM_WORLD_RANK")
            python = (folder / "comm").read_text().startswith("python")
            if environment.get("FEDMPI_MEMORY_JOB") != mark or rank is None or not python:
                continue
            rss = numbers((folder / "status").read_text(), "VmHWM")
            uss = numbers((folder / "smaps_rollup").read_text(), "Private_Clean", "Private_Dirty")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        before = peaks.get(int(rank), (0.0, 0.0))
        peaks[int(rank)] = max(before[0], rss), max(before[1], uss)


def watch(arguments: list[str]) -> Peaks:
    """Runs `mpirun -n RANKS python -m fedmpi ARGUMENTS` and looks at its ranks until it ends."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    job = subprocess.Popen(
        [mpirun(), "-n", str(RANKS), sys.executable, "-m", "fedmpi", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "FEDMPI_MEMORY_JOB": mark},
        stdout=subprocess.DEVNULL,
    )
    peaks: Peaks = {}
    while job.poll() is None:
        look(peaks, mark)
        time.sleep(LOOK_SECONDS)
    if job.returncode:
        raise SystemExit(f"fedmpi {' '.join(arguments)} ended with status {job.returncode}")
    return peaks


def measure(counts: list[int], topology: str, scratch: Path) -> dict[int, Peaks]:
    """Peaks by number of clients."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (ROWS + 2000, 28, 28), dtype=np.uint8)
    labels = draw.integers(0, 10, len(pixels))
    np.savez(scratch / "rows.npz", x=pixels, y=labels)
    found = {}
    for clients in counts:
        shards = str(scratch / str(clients))
        subprocess.run(
            [
                sys.executable, "-m", "fedmpi", "prepare", str(scratch / "rows.npz"), "--clients",
                str(clients), "--workers", str(RANKS - 1), "--out", shards, "--test-fraction",
                str(2000 / len(pixels)),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found[clients] = watch(
            [
                "run", "--path", shards, "--out", str(scratch), "--name", f"run-{clients}",
                "--model", "2nn", "--fraction", "1", "--epochs", "1", "--batch-size", "10",
                "--lr", "0.01", "--rounds", "2", "--topology", topology,
            ]
        )  # fmt: skip
        owner, *workers = (found[clients][rank] for rank in sorted(found[clients]))
        print(
            f"{clients:>8,}{owner[0]:>10.1f}{owner[1]:>8.1f}"
            f"{max(w[0] for w in workers):>12.1f}{max(w[1] for w in workers):>8.1f}",
            flush=True,
        )
    return found


def draw(found: dict[int, Peaks], path: Path) -> None:
    """USS of the owner and of the workers over the number of clients."""
    from fedmpi.study.plot import BLUE, ORANGE, new_figure, save

    figure = new_figure(6.0, 3.6, f"Peak memory, 2NN, {ROWS:,} rows, mpirun -n {RANKS}")
    axes = figure.subplots()
    counts = sorted(found)
    owners = [found[clients][0][1] for clients in counts]
    workers = [max(found[k][rank][1] for rank in found[k] if rank) for k in counts]
    axes.semilogx(counts, owners, color=BLUE, marker="o", label="owner")
    axes.semilogx(counts, workers, color=ORANGE, marker="o", label="worker that has most")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients, all in every round")
    axes.set_ylabel("USS (MiB)")
    axes.legend(frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--topology", choices=("tree", "star"), default="tree")
    parser.add_argument("--out", default="runs", help="folder for memory.json and memory.png")
    chosen = parser.parse_args()
    print(f"MiB at the peak; the model has {4 * PARAMETERS / 2**20:.1f}, its sum twice that")
    print(f"{'clients':>8}{'owner RSS':>10}{'USS':>8}{'worker RSS':>12}{'USS':>8}")
    with tempfile.TemporaryDirectory(prefix="fedmpi-memory-") as scratch:
        found = measure(chosen.clients, chosen.topology, Path(scratch))
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "memory.json").write_text(json.dumps(found, indent=1))
    draw(found, out / "memory.png")
    print(f"drawn to {out / 'memory.png'}")


if __name__ == "__main__":
    main()
