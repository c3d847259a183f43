"""Going on with a run: its configuration, what of that may be changed, and its records."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmpi.config import Config, from_mapping, from_toml
from fedmpi.errors import DataError, UsageError
from fedmpi.federated.checkpoint import resume
from fedmpi.federated.checkpoint_file import About
from fedmpi.federated.job import Job
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.run_folder import RunFolder, write_config

if TYPE_CHECKING:
    from fedmpi.federated.encrypted import EncryptedJob

FREE = (
    "name",
    "out",
    "user_code",
    "comm.",
    "checkpoint.",
    "data.path",
    "data.root",
    "data.download",
    "data.cache_mib",
    "data.verify",
    "federated.rounds",
    "federated.eval_every",
    "federated.evaluate_clients",
    "federated.target_accuracy",
    "federated.overlap_evaluation",
    "federated.on_lost_worker",
)
"""Options of which no bit of any round's model depends: they may change on the way."""
SAME_BITS = ("shards", "scatter")
"""Modes that differ only in who brings the rows to the workers."""


def saved_config(path: Path) -> Config:
    """The configuration of the run in a folder.

    Raises:
        UsageError: there is none.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise UsageError(f"{path} is no folder: --resume takes the folder of a run")
    if not folder.config.is_file():
        raise UsageError(f"{path} is no run: it has no {folder.config.name}")
    return from_toml(folder.config)


def changes(before: Config, after: Config) -> dict[str, str]:
    """What is different, by the option's place in the tree: `0.1 (was 0.2)`.

    What is left open is no difference: `Job` fills it in, and both are compared again.
    """
    old, new = dict(_leaves(asdict(before))), dict(_leaves(asdict(after)))
    return {
        key: f"{new[key]!r} (was {old[key]!r})" for key in new if new[key] not in (old[key], "auto")
    }


def falsifying(before: Config, after: Config) -> dict[str, str]:
    """The changes with which the result would be that of neither configuration."""
    found = changes(before, after)
    wrong = {key: what for key, what in found.items() if not key.startswith(FREE)}
    if {before.federated.mode, after.federated.mode} <= set(SAME_BITS):
        wrong.pop("federated.mode", None)
    privacy = before.federated.privacy
    if "federated.rounds" in found and privacy.kind != "none" and not privacy.noise_multiplier:
        wrong["federated.rounds"] = (
            f"{found['federated.rounds']}, for which the noise was chosen that spends "
            f"privacy.epsilon = {privacy.epsilon:g}"
        )
    return wrong


def refuse_changes(before: Config, after: Config, run: Path) -> None:
    """Refuses to go on with a run in a way that no run from the start could have gone.

    Raises:
        UsageError: lists all options that must not have changed.
    """
    if wrong := falsifying(before, after):
        raise UsageError(
            f"{run} cannot go on with {_listed(wrong)}: the result would be that of neither "
            "configuration; leave that out, or start another run"
        )


def refuse_other_run(config: Config, dataset: str, about: About, path: Path) -> None:
    """Refuses a checkpoint that is not of this run.

    Args:
        config: of the run, with what was left open filled in.
        dataset: name of its data.
        about: the checkpoint.
        path: its file.

    Raises:
        UsageError: it is of another run, or of other data.
    """
    its = from_mapping(tomllib.loads(about.config), str(path))
    if wrong := falsifying(its, config):
        raise UsageError(
            f"{path} is a checkpoint of another run than that of this folder, with "
            f"{_listed(wrong)}: remove it"
        )
    if about.dataset != dataset:
        raise UsageError(
            f"{path} is of other data: expected {dataset[:12]}, found {about.dataset[:12]}; the "
            "recipe is the same, so the source has changed: bring back the rows of then"
        )


class Resumed:
    """A run that goes on.

    Args:
        path: of its folder.
        config: with which it is to go on.

    Attributes:
        folder: of the run.
        done: its last round that counts, 0 before `bring_back`.

    Raises:
        UsageError: the run has ended, or cannot go on with that configuration.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.folder = RunFolder(path)
        self.done = 0
        self._before = saved_config(path)
        if config.federated.mode == "encrypted":
            raise UsageError(
                f"{path} cannot go on: mode = 'encrypted' has no checkpoints, since nobody holds "
                "its model before the end; run it again"
            )
        if config.name or config.out != self._before.out:
            name = f"--name {config.name}" if config.name else f"--out {config.out}"
            raise UsageError(
                f"{name} with --resume {path}: a run stays in its folder, leave it out"
            )
        refuse_changes(self._before, config, path)
        _refuse_ended(self.folder, config)

    def bring_back(self, job: Job | EncryptedJob, say: Callable[[str], None]) -> None:
        """Brings a job to where the newest checkpoint is that can be read.

        Raises:
            UsageError, DataError: see `resume` and `refuse_changes`.
        """
        assert isinstance(job, Job)
        refuse_changes(self._before, job.config, self.folder.path)

        def check(about: About, path: Path) -> None:
            refuse_other_run(job.config, job.dataset.name, about, path)

        resume(job, self.folder.checkpoints, check, say)
        self.done, rounds = job.played, job.config.federated.rounds
        if self.done > rounds:
            raise UsageError(
                f"rounds = {rounds}, but the checkpoint of {self.folder.path} is after round "
                f"{self.done}: ask for at least as many"
            )
        said = f"going on after round {self.done} of {rounds}"
        changed = changes(self._before, job.config)
        say(f"{said}, with {_listed(changed)}" if changed else said)

    def take_over(self, config: Config) -> list[RoundMetrics]:
        """Makes the folder that of a run with this configuration that has not ended.

        The records have been cut back. Returns those of the rounds up to the checkpoint.

        Raises:
            DataError: one is missing.
        """
        folder = self.folder
        rounds = read_metrics(folder.metrics)
        if [metrics.round for metrics in rounds] != list(range(1, self.done + 1)):
            raise DataError(
                f"{folder.metrics} has {len(rounds)} of the {self.done} rounds up to the "
                "checkpoint: bring back the file that the run has written"
            )
        write_config(folder, config)
        for path in (folder.model, folder.curve, folder.outcome):
            path.unlink(missing_ok=True)
        return rounds


def why_ended(rounds: Sequence[RoundMetrics], config: Config) -> str:
    """Why no round comes after these; empty if one does."""
    federated, last = config.federated, rounds[-1] if rounds else None
    if last is None:
        return ""
    if last.stopped:
        return last.stopped
    if 0 < federated.target_accuracy <= (last.test_metric or 0.0):
        return "target_accuracy is reached"
    return "ask for more --rounds to go on" if last.round >= federated.rounds else ""


def _refuse_ended(folder: RunFolder, config: Config) -> None:
    if not (folder.model.exists() and folder.metrics.exists()):
        return
    rounds = read_metrics(folder.metrics)
    if why := why_ended(rounds, config):
        raise UsageError(
            f"{folder.path} has ended after {rounds[-1].round} of {config.federated.rounds} "
            f"rounds: {why}"
        )


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{key} = {what}" for key, what in found.items())


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
