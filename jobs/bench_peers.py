"""The same federated learning on FedMPI and on its peers, in one run.

    python -m jobs.bench_peers --peers FOLDER --root MNIST_FOLDER     (make bench-peers ARGS=...)

Workloads, on MNIST with IID clients, E = 1 and B = 10 (`--root` names the folder of its IDX files;
without it, the 5,000 digits that need no download):

- W1: 100 clients, 10 a round, McMahan's 2NN, lr 0.1, 20 rounds;
- W2: the same with the CNN, 5 rounds;
- W3: W1 with all 100 clients a round, 5 rounds;
- W4: FLUTE's: softmax regression, 1000 clients, 10 a round, lr 0.03, 100 rounds.

FOLDER gets an environment for each peer, from PyPI, where it has none yet; without --peers FedMPI
is compared with the plain PyTorch loop alone. Every system trains on two processes. docs/peers.md
says what is measured and how. A system that cannot be installed or run is listed with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fedmpi.config import Recipe
from fedmpi.data.sources import open_source
from fedmpi.errors import FedMPIError
from jobs.peers.federated import environments, report, summary
from jobs.peers.federated.systems import SYSTEMS, NotMeasured, Setting, prepare_shards, run
from jobs.peers.federated.workloads import WORKLOADS, write_idx

TRIAL_ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "runs.jsonl"
    lines = summary.read(file) if file.exists() else []
    now = circumstances(chosen)
    if chosen.repeats:
        refuse_other_circumstances(lines, now)
    scratch = Path(tempfile.mkdtemp(prefix="peers-"))
    setting = Setting(chosen.peers, scratch, chosen.rounds, chosen.threads, chosen.limit)
    try:
        if chosen.repeats:
            prepare(chosen.root, chosen.workloads, setting)
        with file.open("a") as stream:

            def keep(line: dict[str, Any]) -> None:
                line["circumstances"] = now
                lines.append(line)
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                console.print(told(line), highlight=False, markup=False, soft_wrap=True)

            tried = {line["system"] for line in lines if "error" not in line}
            measure(chosen, setting, tried, keep)
    except FedMPIError as error:
        sys.exit(f"bench-peers: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for workload, systems in report.write(chosen.out, lines).items():
        console.print(report.rich_table(workload, systems))
    for name, reason in summary.not_measured(lines).items():
        console.print(f"{name}: not measured: {reason}", highlight=False, markup=False)
    console.print(f"written to {chosen.out}", highlight=False, markup=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=lambda name: Path(name).resolve(), help="folder of the environments")
    add("--root", default="", help="folder with the IDX files of MNIST, gzipped or not")
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    add("--only", nargs="+", choices=SYSTEMS, default=[], help="these systems alone")
    add("--repeats", type=int, default=3, help="0: the tables of what was measured before")
    add("--rounds", type=int, default=0, help="of every workload; 0: its own number")
    add("--threads", type=int, default=1, help="of PyTorch in each process")
    add("--limit", type=float, default=900, help="seconds for a run")
    add("--out", type=Path, default=Path("runs/bench-peers"), help="folder of the results")
    add("--append", action="store_true", help="add to the runs that are in it")
    chosen = parser.parse_args(arguments)
    for name, least in (("repeats", 0), ("rounds", 0), ("threads", 1), ("limit", 1)):
        if getattr(chosen, name) < least:
            parser.error(f"--{name} {getattr(chosen, name)}: expected at least {least}")
    if (chosen.out / "runs.jsonl").exists() and chosen.repeats and not chosen.append:
        parser.error(f"{chosen.out}/runs.jsonl exists: --append to it, or name another --out")
    if chosen.only and not chosen.peers and set(chosen.only) - {"fedmpi", "plain"}:
        parser.error("--only names peers: name the folder of their environments with --peers")
    own = [s for s in SYSTEMS if chosen.peers or s not in environments.INSTALLS]
    chosen.only = [s for s in own if s in chosen.only] if chosen.only else own
    return chosen


def prepare(root: str, workloads: Sequence[str], setting: Setting) -> None:
    """Writes what all systems read: plain IDX files for the peers, FedMPI's shards of these.

    Raises:
        FedMPIError: the files of MNIST are missing or damaged.
    """
    source = open_source(Recipe(source="mnist" if root else "mnist5k", root=root))
    folder = setting.scratch / "data"
    folder.mkdir()
    for split, stem in (("train", "train"), ("test", "t10k")):
        x, y = zip(*source.blocks(split), strict=True)  # type: ignore[arg-type]
        write_idx(folder, f"{stem}-images-idx3-ubyte", np.concatenate(x).reshape(-1, 28, 28))
        write_idx(folder, f"{stem}-labels-idx1-ubyte", np.concatenate(y))
    for clients in {WORKLOADS[workload].clients for workload in workloads}:
        prepare_shards(clients, setting)


def measure(
    chosen: argparse.Namespace,
    setting: Setting,
    tried: set[str],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Runs all systems in turns, another one first in every repeat.

    Before, a system that is not among `tried` has a short trial, which is not counted: it warms the
    machine's caches, and a system that fails in it is left out.

    Args:
        chosen: the command line.
        setting: of all runs.
        tried: systems that need no trial.
        keep: is told of every run, and of every system that cannot be measured.
    """
    systems = list(chosen.only) if chosen.repeats else []
    for system in [s for s in systems if s not in tried]:
        short = setting._replace(rounds=min(chosen.rounds or TRIAL_ROUNDS, TRIAL_ROUNDS))
        try:
            if system in environments.INSTALLS and setting.peers:
                environments.build(setting.peers, system)
            run(system, chosen.workloads[0], short, f"{system}-trial")
        except (NotMeasured, environments.NotBuilt) as error:
            systems.remove(system)
            keep({"system": system, "error": str(error)})
    for repeat in range(chosen.repeats):
        for workload in chosen.workloads:
            first = repeat % max(1, len(systems))
            for system in systems[first:] + systems[:first]:
                line: dict[str, Any] = {"system": system, "workload": workload}
                try:
                    line |= run(system, workload, setting, f"{workload}-{system}-{repeat}")
                except NotMeasured as error:
                    line["error"] = str(error)
                keep(line)
                shutil.rmtree(setting.scratch / f"{workload}-{system}-{repeat}")


def told(line: dict[str, Any]) -> str:
    """A run in one line."""
    name = " ".join(filter(None, (line.get("workload"), line["system"])))
    if "error" in line:
        return f"{name}: not measured: {line['error']}"
    own = next(iter(summary.summarise([line])[line["workload"]].values()))
    return (
        f"{name}: {own.round:.4f} s a round, start-up {own.startup:.1f} s, "
        f"total {own.total:.1f} s, {own.peak_mib:.0f} MiB, accuracy {own.accuracy:.2%}"
    )


def circumstances(chosen: argparse.Namespace) -> dict[str, str]:
    """When, where and on what this run measures; every line of runs.jsonl has it."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "data": "MNIST" if chosen.root else "5,000 digits of MNIST",
        "workers": f"2 processes of {chosen.threads} thread(s)",
        "rounds": str(chosen.rounds or "as the workloads have"),
    }


def refuse_other_circumstances(lines: Sequence[dict[str, Any]], now: dict[str, str]) -> None:
    """Runs that are to stand in one table may differ in their date alone."""
    for line in lines[-1:]:
        for key, before in line["circumstances"].items():
            if key != "date" and before != now[key]:
                sys.exit(
                    f"bench-peers: {key} of the runs so far: {before}, now: {now[key]}: "
                    "name another --out"
                )


if __name__ == "__main__":
    # Through what ends a run and its processes: they have a session of their own, and would go on.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main()
