"""A scaling study: one job for each number of workers, then a table and a plot.

    python -m jobs.scaling write studies/strong --config jobs/scaling.toml --workers 1 2 4 8 16
    python -m jobs.scaling submit studies/strong              one sbatch for each point
    python -m jobs.scaling submit studies/strong --local      or here, by mpirun, one after another
    python -m jobs.scaling collect studies/strong             a table, and points.csv
    python -m jobs.scaling plot studies/strong                scaling.png

`--kind strong` spreads the clients of the configuration over more and more workers; `--kind weak`
gives every worker as many as it has at the largest point. A script in the folder of a study may
be edited before it is submitted; to submit again runs what is missing or was cut off.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmpi.config import from_toml, to_toml
from fedmpi.errors import FedMPIError, UsageError
from fedmpi.study.scaling.collect import Results, collect, labels
from fedmpi.study.scaling.plot import draw
from fedmpi.study.scaling.script import job_script
from fedmpi.study.scaling.shards import prepare_points
from fedmpi.study.scaling.study import Study, StudyFolder, check
from fedmpi.study.scaling.table import show, write_csv

JOBS = Path(__file__).parent


def write(chosen: argparse.Namespace) -> None:
    """Makes the study's folder: description, configuration, shards, scripts."""
    folder = StudyFolder(chosen.folder)
    config = from_toml(chosen.config)
    study = Study(
        chosen.kind,
        tuple(chosen.workers),
        chosen.repeats,
        chosen.ranks_per_node,
        chosen.cores_per_rank,
        chosen.minutes,
        tuple(chosen.sbatch),
    )
    check(study, config)
    if folder.path.exists():
        raise UsageError(f"{folder.path} exists: choose another folder, or remove it")
    folder.path.mkdir(parents=True)
    folder.save(study)
    folder.config.write_text(to_toml(config), encoding="utf-8")
    prepare_points(study, config.data, folder)
    for workers in study.workers:
        script = folder.script(workers)
        script.parent.mkdir()
        clients = study.clients(workers, config)
        script.write_text(job_script(study, workers, clients, folder, os.path.relpath(JOBS)))
        print(script)


def submit(chosen: argparse.Namespace) -> None:
    """Gives each point to SLURM, or runs all of them here."""
    folder = StudyFolder(chosen.folder)
    study, _ = folder.load()
    if chosen.local:
        run_here(study, folder)
        return
    if not shutil.which("sbatch"):
        raise UsageError("there is no sbatch here: --local runs the points on this machine")
    for workers in study.workers:
        subprocess.run(["sbatch", str(folder.script(workers))], check=True)


def run_here(study: Study, folder: StudyFolder) -> None:
    """Runs every repetition on this machine, one after another.

    The points take turns in an order that changes, so that a slow minute of the machine does not
    fall on one of them.
    """
    order = random.Random(0)
    for repeat in range(1, study.repeats + 1):
        for workers in order.sample(study.workers, len(study.workers)):
            print(f"repetition {repeat}, {workers} workers", flush=True)
            done = subprocess.run(
                ["bash", str(folder.script(workers)), str(repeat)],
                env={**os.environ, "FEDMPI_LAUNCHER": "mpirun", "RANKS": str(workers + 1)},
                stdout=subprocess.DEVNULL,
            )
            if done.returncode:
                print(f"failed with status {done.returncode}", file=sys.stderr, flush=True)


def tabulate(chosen: argparse.Namespace) -> None:
    """Prints what the study found so far, and writes it to points.csv."""
    folder = StudyFolder(chosen.folder)
    results = collect(folder)
    show(results, Console(width=None if sys.stdout.isatty() else 110))
    write_csv(results, folder.table)
    print(f"written to {folder.table}")


def plot(chosen: argparse.Namespace) -> None:
    """Draws one study, or several of one kind over each other."""
    folders = [StudyFolder(path) for path in chosen.folders]
    names = labels(folders, chosen.labels)
    studies: list[Results] = [collect(folder) for folder in folders]
    if len({study.kind for study in studies}) > 1:
        raise UsageError("strong and weak scaling in one plot: draw them one by one")
    out = chosen.out or folders[0].path / "scaling.png"
    draw(studies, names, Path(out), f"{studies[0].kind} scaling")
    print(f"drawn to {out}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    steps = parser.add_subparsers(required=True, metavar="STEP")
    step = steps.add_parser("write", help="make the shards and the job scripts")
    step.set_defaults(step=write)
    step.add_argument("folder", type=Path, help="of the study; must not exist")
    step.add_argument("--config", required=True, help="TOML file of the job to measure")
    step.add_argument("--kind", choices=("strong", "weak"), default="strong")
    step.add_argument("--workers", type=int, nargs="+", required=True, help="of each point, rising")
    step.add_argument("--repeats", type=int, default=Study.repeats, help="runs of each point")
    step.add_argument("--ranks-per-node", type=int, default=Study.ranks_per_node)
    step.add_argument("--cores-per-rank", type=int, default=Study.cores_per_rank)
    step.add_argument("--minutes", type=int, default=Study.minutes, help="time limit of a point")
    step.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION",
        help="another option of sbatch: --sbatch=--partition=short",
    )  # fmt: skip
    step = steps.add_parser("submit", help="sbatch for each point")
    step.set_defaults(step=submit)
    step.add_argument("folder", type=Path)
    step.add_argument("--local", action="store_true", help="run here by mpirun, without SLURM")
    step = steps.add_parser("collect", help="a table, and points.csv")
    step.set_defaults(step=tabulate)
    step.add_argument("folder", type=Path)
    step = steps.add_parser("plot", help="scaling.png")
    step.set_defaults(step=plot)
    step.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    step.add_argument("--labels", nargs="+", default=[], help="a name for each study")
    step.add_argument("--out", default="", help="the PNG; by default in the first study's folder")
    return parser.parse_args(arguments)


def main() -> None:
    chosen = parse()
    try:
        chosen.step(chosen)
    except FedMPIError as error:
        sys.exit(f"scaling.py: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"scaling.py: {' '.join(error.cmd)} failed with status {error.returncode}")


if __name__ == "__main__":
    main()
