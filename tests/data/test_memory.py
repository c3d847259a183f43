"""How much memory a process can still have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedmpi.data import memory
from fedmpi.data.memory import available_memory, limits_left

MIB = 2**20

GROUPS = {
    2: ("0::/job/step\n", "", "memory.max", "memory.current", "inactive_file"),
    1: (
        "5:cpu:/\n4:memory,hugetlb:/job/step\n",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("version", GROUPS)
def test_the_limits_of_a_job_count(version: int, tmp_path: Path) -> None:
    """Its own and that of the groups above it, the cache of files left out."""
    text, base, limit, used, cache = GROUPS[version]
    membership, root = tmp_path / "cgroup", tmp_path / "groups"
    membership.write_text(text)
    folders = [root / base, root / base / "job", root / base / "job" / "step"]
    for folder, most in zip(folders, ("max", str(900 * MIB), str(500 * MIB)), strict=True):
        folder.mkdir(parents=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{300 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} {100 * MIB}\n")
    assert limits_left(membership, root) == [300 * MIB, 700 * MIB]
    shutil.rmtree(folders[-1])
    assert limits_left(membership, root) == [700 * MIB]
    assert limits_left(tmp_path / "nowhere", root) == []


def test_what_is_free_is_less_than_the_node_has() -> None:
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = int(lines.readline().split()[1]) * 1024
    assert 0 < available_memory() < total


def test_a_node_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As within a namespace that does not show them."""
    monkeypatch.setattr(memory, "limits_left", lambda *_: [])
    assert available_memory() > 0
