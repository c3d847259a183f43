"""The job script of a point: a pure function of the study."""

from __future__ import annotations

import math
import shlex

from fedmpi.study.scaling.study import Study, StudyFolder


def job_script(
    study: Study, workers: int, clients: int, folder: StudyFolder, jobs: str = "jobs"
) -> str:
    """The sbatch script that runs a point's repetitions.

    Under bash alone it runs on this machine, if the environment says FEDMPI_LAUNCHER=mpirun and
    RANKS; its arguments are the repetitions, all of them if there are none. A repetition that
    has ended well is not run again, one that was cut off is.

    Args:
        study: what is measured.
        workers: of this point.
        clients: of this point, over all workers.
        folder: of the study, as seen from where sbatch is called.
        jobs: the folder with environment.sh, as seen from there.
    """
    ranks = workers + 1
    per_node = min(study.ranks_per_node, ranks)
    options = [
        f"--job-name={study.kind}-w{workers:04}",
        f"--nodes={math.ceil(ranks / per_node)}",
        f"--ntasks={ranks}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={study.cores_per_rank}",
        "--exclusive",
        f"--time={study.minutes}",
        f"--output={shlex.quote(str(folder.point(workers)))}/job-%j.out",
        *study.sbatch,
    ]
    directives = "\n".join(f"#SBATCH {option}" for option in options)
    repeats = " ".join(str(repeat) for repeat in range(1, study.repeats + 1))
    path = {
        "point": shlex.quote(str(folder.point(workers))),
        "config": shlex.quote(str(folder.config)),
        "shards": shlex.quote(str(folder.shards(workers))),
        "environment": shlex.quote(f"{jobs}/environment.sh"),
    }
    return f"""\
#!/usr/bin/env bash
# {study.kind.capitalize()} scaling: {workers} worker{"s" * (workers != 1)} and the owner. \
Written by jobs/scaling.py.
{directives}
set -euo pipefail
source {path["environment"]}
point={path["point"]}

if [[ ! -e "$point/machine.json" ]]; then
  "${{LAUNCH[@]}}" python -m fedmpi info --out "$point/machine.json"
fi
if (($# == 0)); then set -- {repeats}; fi
failed=0
for repeat in "$@"; do
  if [[ -e "$point/run-$repeat/curve.png" ]]; then continue; fi # a run's last file
  rm -rf "$point/run-$repeat"
  "${{LAUNCH[@]}}" python -m fedmpi run --config {path["config"]} \\
    --path {path["shards"]} --clients {clients} --out "$point" --name "run-$repeat" || failed=$?
done
exit "$failed"
"""
