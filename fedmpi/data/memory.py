"""How much memory there is, so that what does not fit is refused before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from fedmpi.errors import DataError


def available_memory() -> int:
    """Bytes that processes of this node can still have, the limits of this job included."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = limits_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([_meminfo() or pages, *limits])


def limits_left(membership: Path, root: Path) -> list[int]:
    """What each control group that this process is in still allows, in bytes.

    A batch system limits a job by a group of its own below the root; the groups above it count too.
    What the kernel could take back from the cache of files is not counted as used.

    Args:
        membership: lines `number:controllers:path`, one without controllers for version 2.
        root: where the groups are mounted.
    """
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = base / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(base) and (left := _left(group, *names)) is not None:
                found.append(left)
    return found


def require_memory(needed: int, where: str) -> None:
    """Refuses what needs more bytes than there are. Raises `DataError`, begun with `where`."""
    if needed > (available := available_memory()):
        raise DataError(
            f"{where} needs about {size_text(needed)} of memory, and {size_text(available)} are "
            "free: use a node with more, or a smaller file"
        )


def size_text(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**20:,.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**10:,.0f} KiB"


def _meminfo() -> int:
    """MemAvailable in bytes: what is free, and the caches that the kernel would give up."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def _left(group: Path, limit: str, used: str, cache: str) -> int | None:
    """Of one control group; None if it has no limit, or is not to be seen from in a container."""
    try:
        most = (group / limit).read_text(encoding="ascii").strip()
        if not most.isdecimal():
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / used).read_text()) - int(stat.get(cache, 0))
    except OSError:
        return None
    return max(0, int(most) - taken)
