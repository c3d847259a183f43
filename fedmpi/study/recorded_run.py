"""A job together with what it leaves behind: its folder, its records, its model, its curve."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from fedmpi.comm.last_words import LAST_WORDS
from fedmpi.config import Config
from fedmpi.federated.job import Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.federated.model_file import save_model
from fedmpi.federated.opened import opened
from fedmpi.federated.strategy import Strategy
from fedmpi.study.metrics_file import ClientsWriter, MetricsWriter
from fedmpi.study.outcome import lost_line, recording_outcome
from fedmpi.study.plot import curve
from fedmpi.study.progress import Progress
from fedmpi.study.run_folder import RunFolder
from fedmpi.workers.crew import Crew
from fedmpi.workers.logs import open_logs

if TYPE_CHECKING:
    from rich.console import Console


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
    config: Config, crew: Crew, console: Console, strategy: type[Strategy] | None = None
) -> Recorded:
    """Runs a job and records it.

    The folder appears when everything has been opened and checked. The records of ended
    rounds are in it whatever happens later; model.h5 and curve.png come at the end.

    Raises:
        FedMPIError: see `Job`, and what cannot be written.
    """
    RunFolder.refuse_existing(config)
    with opened(config, crew, strategy) as job:
        folder = RunFolder.create(job.config)
        open_logs(crew, folder.logs)
        for line in job.remarks:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        rounds: list[RoundMetrics] = []
        with (
            recording_outcome(folder.outcome, rounds),
            MetricsWriter(folder.metrics) as lines,
            Progress(console, config.federated.rounds) as shown,
        ):

            def after_round(metrics: RoundMetrics) -> None:
                rounds.append(metrics)
                lines.write(metrics)
                LAST_WORDS.keep(
                    f"rounds up to {metrics.round} of {config.federated.rounds} are in "
                    f"{folder.metrics}"
                )
                shown.round(metrics)

            with ExitStack() as files:
                observer = Observer(after_round, lambda clients: None)
                if config.federated.evaluate_clients:
                    client_lines = files.enter_context(ClientsWriter(folder.clients))
                    observer = replace(observer, clients=client_lines.write)
                if config.federated.detect.score:
                    score_lines = files.enter_context(ClientsWriter(folder.scores))
                    observer = replace(observer, scores=score_lines.write)
                job.run(observer)
    if config.secure.learns == "model":
        save_model(folder.model, job.model, job.config)
    curve(rounds, folder.curve, folder.path.name)
    lost = lost_line([one for metrics in rounds for one in metrics.lost])
    last = "; ".join(filter(None, (f"written to {folder.path}", lost)))
    console.print(last, highlight=False, markup=False, soft_wrap=True)
    return Recorded(job.model, rounds, job.config, folder)
