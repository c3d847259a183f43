"""A job together with what it leaves behind: its folder, its records, its model, its curve."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fedmpi.comm.last_words import LAST_WORDS
from fedmpi.comm.signals import SIGNALS
from fedmpi.config import Config
from fedmpi.data.files import remove_abandoned
from fedmpi.errors import FedMPIError, Interrupted, Suspended
from fedmpi.federated.checkpoint import Checkpoints
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.federated.model_file import save_model
from fedmpi.federated.needs import refuse_disk
from fedmpi.federated.opened import opened
from fedmpi.federated.strategy import Strategy
from fedmpi.study.outcome import lost_line, recording_outcome
from fedmpi.study.plot import curve
from fedmpi.study.progress import Progress
from fedmpi.study.records import Records
from fedmpi.study.resume import Resumed, why_ended
from fedmpi.study.run_folder import RunFolder
from fedmpi.workers.crew import Crew
from fedmpi.workers.logs import open_logs

if TYPE_CHECKING:
    from rich.console import Console

    from fedmpi.federated.encrypted import EncryptedJob


@dataclass(frozen=True)
class Recorded:
    """A job that has ended.

    Attributes:
        model: trained; it lives on the owner.
        metrics: of all rounds.
        config: with what was left open filled in.
        folder: where the records are.
    """

    model: nn.Module
    metrics: list[RoundMetrics]
    config: Config
    folder: RunFolder


def run(
    config: Config,
    crew: Crew,
    console: Console,
    strategy: type[Strategy] | None = None,
    resume: str = "",
) -> Recorded:
    """Runs a job and records it.

    The folder appears when everything has been opened and checked. The records of ended
    rounds are in it whatever happens later; model.h5 and curve.png come at the end.

    Args:
        config: of the job.
        crew: idle workers.
        console: where a person reads.
        strategy: see `Job`.
        resume: folder of a run to go on with; `config` is then its own, or has changes that
            `Resumed` allows.

    Raises:
        Suspended: a signal has asked the run to leave; it can go on.
        FedMPIError: see `Job`, and what cannot be written.
    """
    if config.federated.mode == "encrypted":
        SIGNALS.release()  # its model is in the memory of processes that must not write it down
    resumed = Resumed(Path(resume), config) if resume else None
    if not resumed:
        RunFolder.refuse_existing(config)
    with ExitStack() as stack:
        try:
            with SIGNALS.at_once():
                job = stack.enter_context(opened(config, crew, strategy))
                if resumed:
                    resumed.bring_back(job, lambda line: _print(console, line))
        except Interrupted as signal:
            again = resuming(crew, resumed.folder) if resumed else "the same command"
            raise Suspended(f"{signal}: no round has begun; go on with: {again}") from None
        rounds, folder = _play(job, crew, console, resumed)
    lost = lost_line([one for metrics in rounds for one in metrics.lost])
    _print(console, "; ".join(filter(None, (f"written to {folder.path}", lost))))
    return Recorded(job.model, rounds, job.config, folder)


def _play(
    job: Job | EncryptedJob, crew: Crew, console: Console, resumed: Resumed | None
) -> tuple[list[RoundMetrics], RunFolder]:
    """Trains, with everything that is recorded on the way and at the end; returns all rounds."""
    refuse_disk(job.config, job.model, isinstance(job, Job) and job.home.remember)
    folder = resumed.folder if resumed else RunFolder.create(job.config)
    remove_abandoned(folder.path)
    open_logs(crew, folder.logs)
    rounds: list[RoundMetrics] = []
    # Another process may be writing them, whose outcome is not for this one to tell.
    with (
        Records(folder, job.config, resumed.done if resumed else None) as records,
        recording_outcome(folder.outcome, rounds),
    ):
        _record(job, crew, console, folder, resumed, rounds, records)
        if job.config.secure.learns == "model":
            save_model(folder.model, job.model, job.config)
        curve(rounds, folder.curve, folder.path.name)
    return rounds, folder


def _record(
    job: Job | EncryptedJob,
    crew: Crew,
    console: Console,
    folder: RunFolder,
    resumed: Resumed | None,
    rounds: list[RoundMetrics],
    records: Records,
) -> None:
    """Trains; `rounds` takes those that end, after those that had ended before."""
    config, asked = job.config, job.config.federated.rounds
    checkpoints: Checkpoints | None = None
    how = ""
    try:
        with ExitStack() as stack, SIGNALS.patient():
            for line in job.remarks:
                _print(console, line)
            rounds += resumed.take_over(config) if resumed else []
            shown = stack.enter_context(Progress(console, asked, list(rounds)))
            observer = Observer(records.round, records.clients, records.scores)
            if isinstance(job, Job):
                how = f"; go on with: {resuming(crew, folder)}"
                checkpoints = Checkpoints(
                    job, folder.checkpoints, records.sync, lambda line: _print(console, line)
                )
                observer = replace(
                    observer, ended=checkpoints.after_round, keeps=checkpoints.is_due
                )

            def after_round(metrics: RoundMetrics) -> None:
                rounds.append(metrics)
                records.round(metrics)
                LAST_WORDS.keep(
                    f"rounds up to {metrics.round} of {asked} are in {folder.metrics}{how}"
                )
                shown.round(metrics)

            # A run that left after its last round has only its model to write.
            if not why_ended(rounds, config):
                job.run(replace(observer, round=after_round))
            if checkpoints:
                checkpoints.finish()
    except Interrupted as signal:
        raise Suspended(f"{signal}: {_leave(checkpoints, asked)}{how}") from None
    except SystemExit as leave:
        raise FedMPIError(
            f"code of this job called sys.exit({leave.code!r}), {len(rounds)} of {asked} rounds "
            "have ended: raise an error instead"
        ) from leave
    finally:
        if checkpoints:
            checkpoints.close()


def _leave(checkpoints: Checkpoints | None, asked: int) -> str:
    """Writes the last checkpoint; says where the run stands."""
    newest = checkpoints.leave() if checkpoints else 0
    if not (checkpoints and newest):
        return f"no round of {asked} has ended"
    return f"the state after round {newest} of {asked} is in {checkpoints.path_of(newest)}"


def resuming(crew: Crew, folder: RunFolder) -> str:
    """The command with which a run goes on."""
    ranks = "" if crew.in_process else f"mpirun -n {len(crew.ranks) + 1} "
    return f"{ranks}python -m fedmpi run --resume {shlex.quote(str(folder.path))}"


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
