"""The folder in which a run leaves its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fedmpi.config import Config, to_toml
from fedmpi.data.files import atomic, reason
from fedmpi.errors import UsageError


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run is.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Makes the folder of a new run, `config.out/config.name`, and writes its config.toml.

        An empty name becomes model, dataset and the next free number. Only the owner
        may call it: every other rank would get a folder of its own.

        Raises:
            UsageError: the folder exists, or cannot be written.
        """
        out = Path(config.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            if config.name:
                cls.refuse_existing(config)
                folder = cls(out / config.name)
                folder.path.mkdir()
            else:
                folder = cls(_make_next(out, config))
        except OSError as error:
            raise UsageError(
                f"cannot make the run's folder {error.filename}: {reason(error)}"
            ) from None
        write_config(folder, config)
        return folder

    @staticmethod
    def refuse_existing(config: Config) -> None:
        """Refuses a name that is taken; a job asks before it opens its data.

        Raises:
            UsageError: the folder exists.
        """
        path = Path(config.out) / config.name
        if config.name and os.path.lexists(path):
            raise UsageError(f"{path} exists: choose another --name, or remove it")

    @property
    def config(self) -> Path:
        """The whole configuration, ready to be run again."""
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        """The folder from whose files the run can go on."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One line of JSON per round."""
        return self.path / "metrics.jsonl"

    @property
    def clients(self) -> Path:
        """One line of JSON per evaluated client and round."""
        return self.path / "clients.jsonl"

    @property
    def scores(self) -> Path:
        """One line of JSON per scored client and round."""
        return self.path / "scores.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of the ranks' logs, rank-N.log."""
        return self.path / "logs"

    @property
    def outcome(self) -> Path:
        """How the run has ended; not there while it goes on."""
        return self.path / "outcome.json"

    @property
    def model(self) -> Path:
        """The final model."""
        return self.path / "model.h5"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.path / "curve.png"

    @property
    def report(self) -> Path:
        """What `report` draws."""
        return self.path / "report.png"


def write_config(folder: RunFolder, config: Config) -> None:
    """Writes config.toml, without the name, which is taken: the file is there to be run again."""
    with atomic(folder.config) as temporary:
        temporary.write_text(to_toml(replace(config, name="")), encoding="utf-8")


def _make_next(out: Path, config: Config) -> Path:
    """Makes `out/<model>-<data>-<NNN>` with the number after the highest one there."""
    prepared = Path(config.data.path).resolve().name if config.data.path else ""
    data = prepared or Path(config.data.source).stem
    stem = re.sub(r"[^\w.-]+", ".", f"{config.model}-{data}")
    pattern = re.compile(re.escape(stem) + r"-(\d+)")
    taken = [int(m[1]) for entry in out.iterdir() if (m := pattern.fullmatch(entry.name))]
    number = max(taken, default=0) + 1
    while True:
        path = out / f"{stem}-{number:03}"
        try:
            path.mkdir()
        except FileExistsError:  # another run took the number since we looked
            number += 1
        else:
            return path
