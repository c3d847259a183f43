"""What secure aggregation by shares costs a round beside the sum in the clear.

    python -m jobs.bench_secure --root MNIST_FOLDER   (make bench-secure ARGS="--root FOLDER")

The workload: MNIST, 100 clients of 600 digits, 20 of them in every round, McMahan's CNN (1.66
million parameters), E = 1, B = 10, at -n 8. Without --root it takes the 5,000 digits that need no
download; their clients have 40 rows and train 15 times shorter, while masks take as long.

Runs in the clear and with shares take turns, so that a slow minute of the machine hits both. The
ratio is of the medians of the rounds' times without evaluation, the first round of a run left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from jobs.launched import launch_fedmpi, warm_records

CLIENTS = 100
KINDS = ("none", "shares")


def rounds_of(folder: Path, shards: Path, kind: str, chosen: argparse.Namespace) -> list[dict]:
    """A run's records, without the first round, in which memory is still cold."""
    launch_fedmpi(
        chosen.ranks, "run", "--path", str(shards), "--out", str(folder.parent),
        "--name", folder.name, "--model", chosen.model, "--fraction", str(chosen.fraction),
        "--epochs", str(chosen.epochs), "--batch-size", "10", "--lr", "0.05",
        "--rounds", str(chosen.rounds), "--eval-every", str(chosen.rounds),
        "--secure.kind", kind, "--dropout", str(chosen.dropout),
    )  # fmt: skip
    return warm_records(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", default="", help="folder with the IDX files of MNIST")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--fraction", type=float, default=0.2, help="of the 100 clients")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=4, help="of each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmpi-bench-") as scratch:
        measure(chosen, Path(scratch))


def measure(chosen: argparse.Namespace, scratch: Path) -> None:
    """Runs both kinds in turn and prints what a round takes."""
    source = ["mnist", "--root", chosen.root] if chosen.root else ["mnist5k"]
    shards = scratch / "shards"
    launch_fedmpi(chosen.ranks, "prepare", *source, "--clients", str(CLIENTS), "--out", str(shards))
    runs: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    for repeat in range(chosen.repeats):
        for kind in KINDS:
            runs[kind] += rounds_of(scratch / f"run-{kind}-{repeat}", shards, kind, chosen)
    print(
        f"{source[0]}, {chosen.model}, {round(chosen.fraction * CLIENTS)} clients a round, "
        f"E = {chosen.epochs}, -n {chosen.ranks}, {os.cpu_count()} cores; medians of rounds"
    )
    seconds = {
        kind: statistics.median(m["seconds"] - m["phases"]["evaluate"] for m in rounds)
        for kind, rounds in runs.items()
    }
    share = statistics.median(
        m["mask_seconds"] / (m["seconds"] - m["phases"]["evaluate"]) for m in runs["shares"]
    )
    sent = {kind: statistics.median(m["bytes_sent"] for m in runs[kind]) for kind in KINDS}
    print(f"in the clear {seconds['none']:.3f} s, with shares {seconds['shares']:.3f} s a round")
    print(f"ratio {seconds['shares'] / seconds['none']:.3f} (aim: at most 1.15)")
    print(f"expanding masks: {100 * share:.1f} % of a round")
    print(f"sent: {sent['shares'] / sent['none']:.4f} of the bytes in the clear")


if __name__ == "__main__":
    main()
