"""How ranks are started, talk and compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedmpi.config.checks import require, require_choice


@dataclass(frozen=True)
class CommConfig:
    """How ranks are started and talk."""

    transport: Literal["auto", "mpi", "threads"] = "auto"
    """auto: MPI when a launcher (mpirun, srun) started this process, else threads."""
    workers: int | Literal["auto"] = "auto"
    """Number of workers; auto: all ranks but the owner under MPI, 7 in one process."""
    topology: Literal["tree", "star"] = "tree"
    """How the model goes out and the updates come in."""
    chunk_kib: int = 512
    """Size of the pieces in which large vectors travel down and up the tree."""

    def __post_init__(self) -> None:
        require_choice("transport", self.transport, Literal["auto", "mpi", "threads"])
        require_choice("topology", self.topology, Literal["tree", "star"])
        require(
            self.workers == "auto"
            or (isinstance(self.workers, int) and 1 <= self.workers <= 65_536),
            "workers",
            self.workers,
            "1 to 65,536 workers",
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
