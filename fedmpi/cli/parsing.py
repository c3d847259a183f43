"""A command line becomes options: laid over a TOML file, or over the run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from fedmpi.cli.options import JobOptions, RunOptions
from fedmpi.config import Config, from_toml
from fedmpi.errors import UsageError

if TYPE_CHECKING:
    from fedmpi.workers.crew import Crew

Subcommand = Callable[[Sequence[str], "Crew | None", str], None]
"""Takes its command line, the other ranks of an MPI launch, and the launcher's name."""

T = TypeVar("T")
J = TypeVar("J", bound=JobOptions)


def parse(cls: type[T], name: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Options of a subcommand; a wrong one is refused with the nearest right ones."""
    return tyro.cli(
        cls,
        prog=f"python -m fedmpi {name}",
        args=_apart(arguments),
        default=tyro.MISSING_NONPROP if default is None else default,
    )


def _apart(arguments: Sequence[str]) -> list[str]:
    """`--roundz=3` as two words: only so does tyro find the nearest right name."""
    apart: list[str] = []
    for word in arguments:
        name, _, value = word.partition("=")
        split = name.startswith("--") and value and not value.startswith("-")
        apart += [name, value] if split else [word]
    return apart


def config_of(chosen: JobOptions) -> Config:
    """The job that the options of `run`, or of a command that takes them too, ask for."""
    return Config(**{f.name: getattr(chosen, f.name) for f in fields(Config)})


def run_defaults(arguments: Sequence[str], launched: bool) -> RunOptions:
    """As `defaults`; with --resume they are those of the run that goes on."""
    run = _value_of("--resume", arguments)
    if not run:
        return defaults(arguments, RunOptions)
    if path := _value_of("--config", arguments):
        raise UsageError(
            f"--config {path} with --resume {run}, which goes on with its own configuration: "
            "leave one of the two out"
        )
    from fedmpi.study.resume import saved_config

    base = saved_config(Path(run))
    if launched:  # by however many ranks
        base = replace(base, comm=replace(base.comm, workers="auto"))
    return RunOptions(**{f.name: getattr(base, f.name) for f in fields(Config)}, resume=run)


def defaults(arguments: Sequence[str], cls: type[J]) -> J:
    """What the command line is laid over: the file that it names, over the defaults."""
    path = _value_of("--config", arguments)
    base = from_toml(path) if path else Config()
    # Commands other than `run` have an --out of their own.
    names = [f.name for f in fields(Config) if cls is RunOptions or f.name != "out"]
    return cls(**{name: getattr(base, name) for name in names}, config=path)


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """What follows an option, the last time that it is there."""
    found = ""
    for word, following in pairwise([*arguments, ""]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found
