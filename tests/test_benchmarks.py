"""The benchmarks in jobs/ that look at ranks from outside: small runs of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.memory import numbers
from tests.launch import ROOT, run_single


def test_lines_of_proc_are_added() -> None:
    text = "VmPeak:  9 kB\nVmHWM:\t 2048 kB\nPrivate_Clean:  512 kB\nPrivate_Dirty:  1536 kB\n"
    assert numbers(text, "VmHWM") == 2.0
    assert numbers(text, "Private_Clean", "Private_Dirty") == 2.0


@pytest.mark.launch
def test_startup_is_told_by_phase() -> None:
    arguments = ["-m", "jobs.bench_startup", "--ranks", "2", "--repeats", "1"]
    done = run_single(arguments, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for phase in ("interpreter", "import torch", "start MPI", "first round", "all of mpirun"):
        assert phase in done.stdout


@pytest.mark.long
@pytest.mark.launch
def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """Below 168 clients a worker: from there on numba is loaded, once."""
    arguments = ["-m", "jobs.memory", "--clients", "10", "200", "--out", str(tmp_path)]
    done = run_single(arguments, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    few, many = json.loads((tmp_path / "memory.json").read_text()).values()
    for rank in ("0", "1", "2"):
        assert many[rank][1] < few[rank][1] + 20  # MiB; 190 more updates would be 144
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
