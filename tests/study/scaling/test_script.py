"""Scripts against golden files: FEDMPI_GOLDEN=1 writes them anew, for a person to read the diff."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fedmpi.study.scaling.script import job_script
from fedmpi.study.scaling.study import Study, StudyFolder
from tests.launch import ROOT

GOLDEN = Path(__file__).parent / "golden"
STUDIES = {
    "strong": (Study("strong", (1, 2, 4, 8), 6), 1, 112),
    "weak": (Study("weak", (1, 300), 2, 48, 2, 90, ("--partition=short", "--mem=0")), 300, 4800),
}


@pytest.mark.parametrize("name", STUDIES)
def test_golden(name: str) -> None:
    study, workers, clients = STUDIES[name]
    found = job_script(study, workers, clients, StudyFolder(Path("studies") / name))
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("FEDMPI_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_a_folder_with_a_blank() -> None:
    found = job_script(STUDIES["strong"][0], 1, 8, StudyFolder(Path("my studies")), "../my jobs")
    assert "source '../my jobs/environment.sh'\n" in found
    assert "point='my studies/w0001'\n" in found
    assert "#SBATCH --output='my studies/w0001'/job-%j.out" in found


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_has_no_complaint() -> None:
    files = [*GOLDEN.glob("*.sbatch"), *(ROOT / "jobs").glob("*.sbatch")]
    command = ["shellcheck", "--external-sources", *files, ROOT / "jobs" / "environment.sh"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
