"""The log of a rank: what is kept before there is a file, and what a node without access does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.launch import ROOT


def run(script: str, folder: Path) -> str:
    """In a process of its own: the log belongs to the process."""
    start = "from fedmpi.comm.rank_log import LOG, RANK_LOG, KEPT_LINES\n"
    command = [sys.executable, "-c", start + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    file = folder / "rank-3.log"
    return file.read_text() if file.is_file() else ""


def test_what_came_before_the_file_is_in_it(tmp_path: Path) -> None:
    text = run(
        "import sys\nRANK_LOG.begin(3)\nLOG.info('early')\nRANK_LOG.open(sys.argv[1], 3)\n"
        "RANK_LOG.open(sys.argv[1], 3)\nLOG.warning('late')\n",
        tmp_path,
    )
    lines = text.splitlines()
    assert len(lines) == 3
    assert "INFO rank 3: start: process " in lines[0]
    assert lines[1].endswith("INFO rank 3: early")
    assert lines[2].endswith("WARNING rank 3: late")


def test_without_a_file_it_does_not_grow(tmp_path: Path) -> None:
    text = run(
        "import sys\nRANK_LOG.begin(3)\nfor k in range(5000): LOG.info('line %d', k)\n"
        "RANK_LOG.open(sys.argv[1], 3)\n",
        tmp_path,
    )
    assert len(text.splitlines()) == 200
    assert text.splitlines()[-1].endswith("line 4999")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run(
        "import sys\nRANK_LOG.begin(3)\nRANK_LOG.open(sys.argv[1] + '/file', 3)\n"
        "assert RANK_LOG.path is None\nLOG.info('goes on')\n",
        tmp_path,
    )


def test_a_crash_in_c_leaves_its_stack(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys\nfrom fedmpi.comm.rank_log import RANK_LOG\n"
        "RANK_LOG.begin(3)\nRANK_LOG.open(sys.argv[1], 3)\nctypes.string_at(0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=60, cwd=ROOT)
    assert done.returncode < 0
    assert "Segmentation fault" in (tmp_path / "rank-3.log").read_text()


def test_without_begin_nothing_happens(tmp_path: Path) -> None:
    """As in a program of one's own, which has its own logging or none."""
    script = "import sys\nRANK_LOG.open(sys.argv[1], 3)\nLOG.error('unheard')\n"
    assert run(script, tmp_path) == ""
