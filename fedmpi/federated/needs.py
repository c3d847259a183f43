"""What a job needs of memory and disk, reckoned before its first round.

A job that runs out of memory after an hour is killed by the kernel without a word. So the large
parts, which are known once the model is built, are added up and compared with what there is. The
reckoning leaves out what PyTorch keeps for itself: it refuses what cannot work, and promises
nothing for the rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from fedmpi.comm.transport import Transport
from fedmpi.config import COLLUDING, Config
from fedmpi.config.federated import cohort_size
from fedmpi.data.memory import available_memory, size_text
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
            f"rank {transport.rank} needs about {size_text(needed)} of memory for its clients, "
            f"and {size_text(share)} are free for each of the {ranks} ranks of its node: use fewer "
            "ranks on a node, a smaller fraction of the clients, or a smaller model"
        )


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
            f"{out} needs about {size_text(needed)} for the model and {keep} checkpoints, and "
            f"{size_text(disk.free)} are free: choose another --out, or lower --checkpoint.keep"
        )


def _writes_checkpoints(config: Config) -> bool:
    return bool(config.checkpoint.every_rounds or config.checkpoint.every_minutes)
