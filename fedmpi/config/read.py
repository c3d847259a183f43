"""TOML to the tree and back."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import tomli_w

from fedmpi.config.checks import nearest
from fedmpi.config.tree import Config
from fedmpi.decoding import converted
from fedmpi.errors import UsageError


def _known_keys(cls: type, prefix: str = "") -> dict[str, str]:
    """Every key of the tree: its own name to its dotted path."""
    keys: dict[str, str] = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            keys |= _known_keys(hints[f.name], f"{prefix}{f.name}.")
        keys.setdefault(f.name, prefix + f.name)
    return keys


def _refuse_unknown_keys(table: dict[str, Any], cls: type, where: str, prefix: str = "") -> None:
    """msgspec checks types but passes over keys that a dataclass does not have."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    for key, value in table.items():
        if key not in names:
            known = _known_keys(Config)
            close = [known[key]] if key in known else []
            close = close or [prefix + k for k in difflib.get_close_matches(key, names, n=1)]
            close = close or [known[k] for k in difflib.get_close_matches(key, known, n=1)]
            hint = f": did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"
            shown = key if key.isprintable() else repr(key)
            raise UsageError(f"{where}: unknown key {prefix}{shown}{hint}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown_keys(value, hints[key], where, f"{prefix}{key}.")


def _choices(table: dict[str, Any], key: str) -> str:
    """`"; choices: a, b (did you mean 'a'?)"` for a key of a few words, or an empty string."""
    value: Any = table
    annotation: Any = Config
    for name in key.partition("[")[0].split("."):  # of an element the list
        value, annotation = value[name], get_type_hints(annotation)[name]
    # The words of a Literal, or of one within a union.
    words = [
        word
        for part in (annotation, *get_args(annotation))
        for word in get_args(part)
        if isinstance(word, str)
    ]
    return f"; choices: {', '.join(words)}{nearest(str(value), words)}" if words else ""


def from_mapping(table: dict[str, Any], where: str) -> Config:
    """The configuration that a TOML table describes; what it leaves out keeps its default.

    Raises:
        UsageError: an unknown key (with the nearest known one), a wrong type, or a
            value out of range; the sentence begins with `where`.
    """
    _refuse_unknown_keys(table, Config, where)
    try:
        return converted(table, Config)
    except msgspec.ValidationError as error:
        what, _, key = str(error).rstrip("`").partition(" - at `$.")
        raise UsageError(f"{where}: {key}: {what}{_choices(table, key)}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def from_toml(path: str | Path) -> Config:
    """Reads a TOML file. Raises `UsageError` for all that `from_mapping` refuses."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return from_mapping(table, str(path))


def to_toml(config: Config) -> str:
    """The whole tree as TOML; `from_mapping` of its text gives an equal tree."""
    return tomli_w.dumps(asdict(config))
