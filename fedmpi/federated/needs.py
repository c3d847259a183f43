"""What a job needs of memory and disk, reckoned before its first round.

A job that runs out of memory after an hour is killed by the kernel without a word. So the large
parts, which are known once the model is built, are added up and compared with what there is. The
reckoning leaves out what PyTorch keeps for itself: it refuses what cannot work, and promises
nothing for the rest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from torch import nn

from fedmpi.comm.transport import Transport
from fedmpi.config import COLLUDING, Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import UsageError
from fedmpi.federated.client_stack import stack_size
from fedmpi.federated.client_step import descent_of
from fedmpi.federated.flat_state import FlatState

_SUM_BYTES = 8
"""Of a value in the exact sum, and in a strategy's memory."""
_UPDATE_BYTES = 4
"""Of a value in an update that a worker keeps."""
_MOMENTS = 2
"""Vectors of float64, as long as the model, that the most demanding strategies remember."""


def keeps_updates(config: Config) -> bool:
    """Whether the owner looks at every client's update, which workers keep until it has."""
    federated = config.federated
    defended = federated.robust.kind != "none" or federated.detect.score
    return defended or config.attack.kind in COLLUDING


def worker_bytes(config: Config, state: FlatState, clients: int, remember: bool = False) -> int:
    """Memory that models, sums, kept updates and what is remembered take on a worker.

    Args:
        config: of the job.
        state: the model.
        clients: of the worker.
        remember: they carry something as long as the model from round to round.
    """
    state_bytes = sum(vector.nbytes for vector in state.vectors)
    client_bytes = state_bytes * (1 + descent_of(config).kinds)
    stacked = stack_size(config.compute.stack, client_bytes, clients)
    cohort = cohort_size(clients, config.federated.fraction)
    kept = cohort * state.numel * _UPDATE_BYTES if keeps_updates(config) else 0
    # The model that clients start from, the resident one, the stack.
    models = state_bytes + (1 + stacked) * client_bytes
    # The sum, and a piece of another's.
    sums = 2 * state.numel * _SUM_BYTES
    remembered = _remembered_bytes(config, state.numel, clients) if remember else 0
    return models + sums + kept + remembered


def _remembered_bytes(config: Config, numel: int, clients: int) -> int:
    """What so many clients remember, once those have trained that will."""
    federated = config.federated
    trained = min(clients, federated.rounds * cohort_size(clients, federated.fraction))
    return trained * numel * _UPDATE_BYTES


def refuse_memory(transport: Transport, needed: int) -> None:
    """Refuses what does not fit into this rank's part of the memory that is free.

    Args:
        transport: of the rank, which knows with how many it shares the node.
        needed: in bytes.

    Raises:
        UsageError: says how much is needed and how much there is.
    """
    ranks = list(transport.nodes).count(transport.nodes[transport.rank])
    share = available_memory() // ranks
    if needed > share:
        raise UsageError(
            f"rank {transport.rank} needs about {_size(needed)} of memory for its clients, and "
            f"{_size(share)} are free for each of the {ranks} ranks of its node: use fewer ranks "
            "on a node, a smaller fraction of the clients, or a smaller model"
        )


def available_memory() -> int:
    """Bytes that processes of this node can still have, the limits of this job included."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_meminfo() or pages, *limits_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


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


def refuse_disk(config: Config, model: nn.Module, remember: bool = False) -> None:
    """Refuses a run whose files do not fit on the disk of `config.out`.

    Args:
        config: of the job.
        model: whose parameters and buffers are kept.
        remember: so do clients with something as long as the model.

    Raises:
        UsageError: says how much is needed and how much there is.
    """
    out = Path(config.out).absolute()
    there = next(path for path in (out, *out.parents) if path.exists())
    disk = shutil.disk_usage(there)
    if not disk.total:
        return  # no disk at all, as /proc: who makes the folder will say so
    keep = config.checkpoint.keep + 1 if _writes_checkpoints(config) else 0
    state = model.state_dict().values()
    state_bytes, numel = sum(t.nbytes for t in state), sum(t.numel() for t in state)
    clients = _remembered_bytes(config, numel, config.data.clients) if remember else 0
    needed = state_bytes + keep * (state_bytes + _MOMENTS * numel * _SUM_BYTES + clients)
    if needed > disk.free:
        raise UsageError(
            f"{out} needs about {_size(needed)} for the model and {keep} checkpoints, and "
            f"{_size(disk.free)} are free: choose another --out, or lower --checkpoint.keep"
        )


def _writes_checkpoints(config: Config) -> bool:
    return bool(config.checkpoint.every_rounds or config.checkpoint.every_minutes)


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


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**10:,.0f} KiB"
