"""How ranks are started, talk and compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmpi.config.checks import require, require_choice
from fedmpi.errors import UsageError


@dataclass(frozen=True)
class CommConfig:
    """How ranks are started and talk."""

    transport: Literal["auto", "mpi", "threads"] = "auto"
    """auto: MPI when a launcher (mpirun, srun) started this process, else threads."""
    workers: int | Literal["auto"] = "auto"
    """Number of workers; auto: all ranks but the owner under MPI, 7 in one process."""
    topology: Literal["tree", "star"] = "tree"
    """How the model goes out and the updates come in."""
    hierarchy_above: int = 0
    """With more workers than this, one worker of each node takes the model for its node and adds
    up what its node sends: the tree is one of nodes. Without limit: 65536."""
    chunk_kib: int = 1024
    """Size of the pieces in which large vectors travel down and up the tree."""
    balance: Literal["auto", "on", "off"] = "auto"
    """Give a round's clients evenly to the workers, which read shards of others where all shards
    are in one folder and a client leaves nothing behind. auto: where it saves a millisecond of a
    round, by what the last one took; off: each worker trains the clients of its own shard."""
    secure_transport: bool = False
    """Seal every message by AES-GCM, for fabrics that are shared with others."""
    key_file: str = ""
    """Its secret, on every node; empty: a new one in the owner's home, which all nodes share."""
    silence_seconds: float | Literal["auto"] = "auto"
    """A worker that gives no sign of life for so long is taken for dead; auto: ten times the
    longest round so far, at least a minute, and an hour before the first round has ended."""

    def __post_init__(self) -> None:
        require_choice("transport", self.transport, Literal["auto", "mpi", "threads"])
        require_choice("topology", self.topology, Literal["tree", "star"])
        require_choice("balance", self.balance, Literal["auto", "on", "off"])
        require(
            self.workers == "auto"
            or (isinstance(self.workers, int) and 1 <= self.workers <= 65_536),
            "workers",
            self.workers,
            "1 to 65,536 workers",
        )
        if self.key_file and not self.secure_transport:
            raise UsageError(
                f"key_file = {self.key_file!r} without secure_transport: add --secure-transport"
            )
        require(
            0 <= self.hierarchy_above <= 65_536,
            "hierarchy_above",
            self.hierarchy_above,
            "0 to 65,536 workers",
        )
        require(
            self.silence_seconds == "auto"
            or (isinstance(self.silence_seconds, int | float) and 1 <= self.silence_seconds <= 1e6),
            "silence_seconds",
            self.silence_seconds,
            '1 to 1,000,000 seconds, or "auto"',
        )
        require(1 <= self.chunk_kib <= 2**20, "chunk_kib", self.chunk_kib, "1 to 1,048,576 KiB")


@dataclass(frozen=True)
class ComputeConfig:
    """What the clients train on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of the local rank where there is one."""
    threads: int = 1
    """PyTorch threads of each rank; part of the result's bits, hence never chosen by itself."""
    stack: int | Literal["auto"] = "auto"
    """Clients of a worker that train at the same time, models side by side; auto: by model size."""

    def __post_init__(self) -> None:
        require_choice("device", self.device, Literal["auto", "cpu", "cuda"])
        require(1 <= self.threads <= 1024, "threads", self.threads, "1 to 1024 threads")
        require(
            self.stack == "auto" or (isinstance(self.stack, int) and 1 <= self.stack <= 1024),
            "stack",
            self.stack,
            "auto, or 1 (one client after another) to 1024 clients",
        )
