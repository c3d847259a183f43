"""jobs/scaling.py as a person runs it on one machine."""

import sys
from pathlib import Path

import pytest

from fedmpi.study.scaling.collect import collect
from fedmpi.study.scaling.study import StudyFolder
from tests.launch import ROOT, launchers, run_single

pytestmark = pytest.mark.launch
JOB = '[data]\nsource = "digits"\nclients = 4\n[federated]\nrounds = 2\nepochs = 1\n'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    paths = [Path(launcher.mpirun).parent for launcher in launchers().values()][:1]
    path = ":".join(map(str, [*paths, Path(sys.executable).parent]))
    (tmp_path / ".venv" / "bin" / "activate").write_text(f"export PATH='{path}':$PATH\n")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def scaling(site: Path, *arguments: str) -> tuple[int, str]:
    done = run_single(["-m", "jobs.scaling", *arguments], timeout=120, cwd=site)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif("mpich" not in launchers(), reason="no MPICH")
def test_a_study_on_this_machine(site: Path) -> None:
    write = ["write", "study", "--config", "job.toml", "--workers", "1", "2", "--repeats", "1"]
    assert scaling(site, *write)[0] == 0
    status, told = scaling(site, *write)
    assert (status, told) == (1, "scaling.py: study exists: choose another folder, or remove it\n")
    assert scaling(site, "submit", "study", "--local")[0] == 0
    points = collect(StudyFolder(site / "study")).points
    assert [(p.workers, len(p.seconds), p.failures) for p in points] == [(1, 1, ()), (2, 1, ())]
    status, told = scaling(site, "collect", "study")
    assert status == 0
    assert "base case: 1 worker and the owner" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("write", "x", "--config", "job.toml", "--workers", "5"), "a worker needs a client"),
        (("write", "x", "--config", "none.toml", "--workers", "1"), "cannot read"),
        (("collect", "x"), "`scaling.py write` makes a study"),
        (("plot", "x", "--labels", "a", "b"), "2 labels for 1 studies"),
    ],
)
def test_a_mistake_is_one_sentence(site: Path, arguments: tuple[str, ...], sentence: str) -> None:
    status, told = scaling(site, *arguments)
    assert status == 1
    assert told.count("\n") == 1
    assert sentence in told
    assert not (site / "x").exists()
