"""The sources by name, and the user's own files."""

from __future__ import annotations

from pathlib import Path

from fedmpi.config import Recipe, nearest
from fedmpi.data.source import Source
from fedmpi.data.sources_file import SUFFIXES, open_own_file
from fedmpi.data.sources_packaged import PACKAGED
from fedmpi.data.sources_torchvision import TORCHVISION
from fedmpi.errors import UsageError

SOURCES = (*PACKAGED, *TORCHVISION)
"""Names of the datasets that need no file of the user's own."""


def open_source(recipe: Recipe) -> Source:
    """Opens the source that a recipe names; the rows are not read yet.

    With `recipe.download`, files that are missing are fetched first; let one rank of a
    job do that before the others open the source.

    Raises:
        UsageError: no such source, or a package that it comes with is not installed.
        DataError: its files are missing or damaged.
    """
    if recipe.source in PACKAGED:
        return PACKAGED[recipe.source](recipe)
    if recipe.source in TORCHVISION:
        return TORCHVISION[recipe.source].open(recipe)
    if Path(recipe.source).suffix in SUFFIXES:
        return open_own_file(recipe)
    raise UsageError(
        f"source = {recipe.source!r}{nearest(recipe.source, SOURCES)}: expected one of "
        f"{', '.join(SOURCES)}, or the path of a {', '.join(SUFFIXES)} file"
    )


def source_files(recipe: Recipe) -> list[Path]:
    """The files that a source is read from, as far as they are there; of a package, none."""
    if recipe.source in PACKAGED:
        return []
    if recipe.source in TORCHVISION:
        return TORCHVISION[recipe.source].files(recipe)
    return [path for path in [Path(recipe.source)] if path.is_file()]
