"""The rooms of the package may use the rooms below them, never those above."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import ROOT

ROOMS = (
    "__main__",
    "testing",
    "cli",
    "study",
    "federated",
    "spdz",
    "tensors",
    "workers",
    "comm",
    "data",
    "models",
)
"""From the top of the house to the bottom."""
LEAVES = ("config", "decoding", "errors", "torchvision_compat")
"""Below all rooms, and importable by each of them; `errors` is the lowest."""

HEIGHT = {room: len(ROOMS) - i for i, room in enumerate(ROOMS)}
HEIGHT |= {"config": 0, "torchvision_compat": 0, "errors": -1, "decoding": -1, "__init__": -1}


def room_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of the package, wherever in the file it stands."""
    here = ["fedmpi", *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = here[: len(here) - node.level] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                names = [f"{module}.{alias.name}" for alias in node.names]
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if ast.unparse(
                node.func
            ).endswith(("import_module", "__import__")):
                names = [name]
        for name in names:
            if name.split(".")[0] == "fedmpi":
                yield node.lineno, name


def upward_arrows(package: Path) -> list[str]:
    """A sentence for each import that does not point downwards."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if path == package / "__init__.py":
            continue  # the front door shows what stands in the rooms, and opens them when asked
        if room not in HEIGHT:
            found.append(f"{path}: room {room} is not on the map: give it a place in {__name__}")
            continue
        for line, name in imports(path, package):
            target = name.partition(".")[2].split(".")[0]
            if target not in HEIGHT:  # an attribute of the package itself, as in fedmpi.__version__
                exists = (package / target).is_dir() or (package / f"{target}.py").exists()
                target = target if target and exists else "__init__"
            if target != room and HEIGHT.get(target, 99) >= HEIGHT[room]:
                found.append(f"{path}:{line}: {room} must not import {name}")
    return found


def test_imports_point_downwards() -> None:
    assert upward_arrows(ROOT / "fedmpi") == []


def test_the_front_door_opens_no_room_unasked() -> None:
    heavy = "print({'torch', 'numpy', 'msgspec'} & set(sys.modules))"
    code = f"import sys, fedmpi; {heavy}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("federated/server.py", "from fedmpi.workers.crew import Crew", True),
        ("federated/server.py", "from fedmpi.federated.client import train", True),
        ("federated/server.py", "from fedmpi import __version__, errors", True),
        ("federated/server.py", "from . import client", True),
        ("federated/server.py", "from .. import comm", True),
        ("comm/mpi.py", "def f():\n    from fedmpi.workers import crew", False),
        ("comm/mpi.py", "import fedmpi.cli", False),
        ("comm/mpi.py", "from fedmpi import study", False),
        ("comm/mpi.py", "from ..tensors.plan import Plan", False),
        ("comm/mpi.py", "importlib.import_module('fedmpi.federated.server')", False),
        ("comm/mpi.py", "from fedmpi.elsewhere import x", True),
        ("models.py", "from fedmpi.data import files", False),
        ("models.py", "from fedmpi import config, torchvision_compat", True),
        ("config.py", "from fedmpi.errors import UsageError", True),
        ("errors.py", "from fedmpi import config", False),
        ("cli/commands.py", "from fedmpi import __main__", False),
        ("shed.py", "import os", False),
    ],
)
def test_an_upward_arrow_is_found(file: str, line: str, allowed: bool, tmp_path: Path) -> None:
    path = tmp_path / "fedmpi" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    assert (upward_arrows(tmp_path / "fedmpi") == []) == allowed
