"""Rounds to a target accuracy on MNIST, as in McMahan et al. 2017, tables 1 to 3.

    python -m jobs.mcmahan --root MNIST_FOLDER            all rows: about an hour on two cores
    python -m jobs.mcmahan --root MNIST_FOLDER 2nn-iid    one row

For every row the learning rate is tuned over a small grid, as the paper does; the fewest
rounds count. Each run is an ordinary `mpirun -n RANKS python -m fedmpi` that stops at the
target, and leaves its folder under runs/mcmahan/.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobs.launched import launch_fedmpi, records

RUNS = Path("runs/mcmahan")


@dataclass(frozen=True)
class Row:
    """One cell of the paper: what is trained, to which accuracy, in how many rounds."""

    options: list[str]
    partition: str
    target: float
    paper: int
    limit: int
    lrs: tuple[float, ...]


ROWS = {
    "2nn-iid": Row(
        ["--model", "2nn", "--epochs", "1"], "iid", 0.97, 87, 100, (0.05, 0.1, 0.15, 0.2)
    ),
    "2nn-pathological": Row(
        ["--model", "2nn", "--epochs", "1"], "pathological", 0.97, 664, 750, (0.03, 0.05, 0.1)
    ),
    "cnn-iid": Row(["--model", "cnn", "--epochs", "5"], "iid", 0.99, 18, 25, (0.1, 0.15)),
}


def shards(root: str, partition: str, ranks: int) -> str:
    """100 clients of 600 digits each, prepared once."""
    folder = Path("data") / f"mcmahan-{partition}-{ranks - 1}w"
    if not (folder / "index.json").exists():
        launch_fedmpi(
            ranks, "prepare", "mnist", "--root", root, "--clients", "100",
            "--partition", partition, "--out", str(folder), quiet=False,
        )  # fmt: skip
    return str(folder)


def rounds_to_target(folder: Path, target: float) -> tuple[int | None, float, float]:
    """The first round that reached the target, the best accuracy, and the seconds of all rounds."""
    lines = records(folder)
    reached = [
        m["round"] for m in lines if m["test_metric"] is not None and m["test_metric"] >= target
    ]
    best = max(m["test_metric"] for m in lines if m["test_metric"] is not None)
    return (reached[0] if reached else None), best, sum(m["seconds"] for m in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; none: all")
    parser.add_argument("--root", required=True, help="folder with the IDX files of MNIST")
    parser.add_argument("--ranks", type=int, default=3)
    chosen = parser.parse_args()
    for name in chosen.rows:
        if name not in ROWS:
            parser.error(f"unknown row {name!r}: one of {', '.join(ROWS)}")
    table = [
        "| row | lr | rounds to target | paper | best accuracy | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in chosen.rows or ROWS:
        row = ROWS[name]
        path = shards(chosen.root, row.partition, chosen.ranks)
        for lr in row.lrs:
            run = RUNS / f"{name}-lr{lr:g}"
            if not (run / "model.h5").exists():
                shutil.rmtree(run, ignore_errors=True)  # what an interrupted run left
                launch_fedmpi(
                    chosen.ranks, "run", "--path", path, "--out", str(RUNS), "--name", run.name,
                    *row.options, "--fraction", "0.1", "--batch-size", "10", "--lr", str(lr),
                    "--rounds", str(row.limit), "--target-accuracy", str(row.target), quiet=False,
                )  # fmt: skip
            found, best, seconds = rounds_to_target(run, row.target)
            table.append(
                f"| {name} to {row.target:.0%} | {lr:g} | {found or f'not in {row.limit}'} "
                f"| {row.paper} | {best:.2%} | {seconds:.0f} |"
            )
            print("\n".join(table), flush=True)


if __name__ == "__main__":
    main()
