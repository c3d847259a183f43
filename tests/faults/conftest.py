"""What the faults are put into: small shards of the digits, copied for those that damage them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fedmpi import cli
from fedmpi.errors import FedMPIError
from tests.faults.jobs import MODELS
from tests.launch import Launcher, launchers


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two clients each; not to be written to."""
    folder = tmp_path_factory.mktemp("prepared") / "digits"
    cli.main(["prepare", "digits", "--clients=4", "--workers=2", f"--out={folder}"], None, "")
    return folder


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "shards"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: empty but for a module `own` with a person's own models."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "own.py").write_text(MODELS)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return folder


@pytest.fixture(params=sorted(launchers()) or [pytest.param("", marks=pytest.mark.skip("no MPI"))])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Each of the launchers in turn."""
    return launchers()[request.param]


@pytest.fixture
def mpich() -> Launcher:
    """The launcher of the main line: `mpirun -n 8` of MPICH."""
    if "mpich" not in launchers():
        pytest.skip("no MPICH")
    return launchers()["mpich"]


@pytest.fixture
def refused(here: Path):
    """Runs a command line in this process and gives the error that a person would be told."""

    def run(*arguments: str) -> FedMPIError:
        with pytest.raises(FedMPIError) as caught:
            cli.main(arguments, None, "")
        error = caught.value
        assert error.exit_status != 0
        assert "\n" not in str(error)
        assert getattr(error, "remote_traceback", "") == ""
        return error

    return run
