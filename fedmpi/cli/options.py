"""What each subcommand takes: the help texts are the docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from fedmpi.config import (
    CommConfig,
    ComputeConfig,
    Config,
    DataConfig,
    FederatedConfig,
    Recipe,
    SecureConfig,
)

_SHORT = tyro.conf.arg(name="")
"""The tree is for reading; on the command line --rounds is enough. The newer branches keep their
names: --privacy.epsilon."""


@dataclass(frozen=True)
class JobOptions(Config):
    """What describes a federated job."""

    data: Annotated[DataConfig, _SHORT] = field(default_factory=DataConfig)
    federated: Annotated[FederatedConfig, _SHORT] = field(default_factory=FederatedConfig)
    secure: Annotated[SecureConfig, _SHORT] = field(default_factory=SecureConfig)
    comm: Annotated[CommConfig, _SHORT] = field(default_factory=CommConfig)
    compute: Annotated[ComputeConfig, _SHORT] = field(default_factory=ComputeConfig)

    config: str = ""
    """A TOML file; the options on the command line win over it."""


@dataclass(frozen=True)
class RunOptions(JobOptions):
    """Run a federated job: federated averaging over the workers' shards."""

    resume: str = ""
    """Folder of a run that was ended before its time, such as runs/2nn-mnist5k-001: go on with it,
    with the configuration that it has."""


@dataclass(frozen=True)
class PrepareOptions(Recipe):
    """Make shards and their index from a dataset."""

    source: tyro.conf.Positional[str] = "mnist5k"
    """mnist5k, digits, breast_cancer, diabetes, boston, mnist, fashion_mnist, kmnist, emnist,
    cifar10, cifar100, or the path of a .npz, .h5 or .hdf5 file of your own."""
    workers: int = 0
    """Number of shards; 0: one for each worker of this launch, 7 without mpirun."""
    out: str = ""
    """Folder of the shards; empty: data/<source>."""
    overwrite: bool = False
    """Replace the dataset that the folder holds."""


@dataclass(frozen=True)
class InspectOptions:
    """Show rows, clients and labels of prepared shards, as a table and as labels.png."""

    folder: tyro.conf.Positional[str]
    """Folder of prepared shards."""


@dataclass(frozen=True)
class ReportOptions:
    """Show a run: accuracy and loss, time by phase, bytes sent; as tables and as report.png."""

    folder: tyro.conf.Positional[str]
    """Folder of a run, such as runs/2nn-mnist5k-001."""


@dataclass(frozen=True)
class InfoOptions:
    """Show MPI library, ranks, cores, threads, versions and GPUs of this launch."""

    out: str = ""
    """A JSON file for the facts of every rank, too."""


@dataclass(frozen=True)
class ExecOptions:
    """Run a script of one's own, in which fedmpi.workers() are the other ranks."""

    script: tyro.conf.Positional[str]
    """A Python file; what follows it on the command line is the script's own."""
    workers: int = 0
    """Number of workers; 0: all ranks of the launch but one, 3 without mpirun."""
    memory_mib: int = 0
    """Most memory of the tensors on each worker, in MiB; 0: no limit but the node's memory."""
    data: str = ""
    """Folder of prepared shards, one for each worker: search("#train", "#x") finds them."""
    private: bool = False
    """The workers keep their shards, and what is computed from them, to themselves."""
    threads: int = 1
    """PyTorch threads of each rank; part of the result's bits, hence never chosen by itself."""
    secure_transport: bool = False
    """Seal every message by AES-GCM, for fabrics that are shared with others."""
    key_file: str = ""
    """Its secret, on every node; empty: a new one in the owner's home, which all nodes share."""


@dataclass(frozen=True)
class DealOptions:
    """Compute beforehand what a saved plan over shared tensors needs of the dealer."""

    plan: tyro.conf.Positional[str]
    """File of the plan: fm.plan(step, masks_outside=False).record(...).save(FILE)."""
    runs: int = 100
    """How many times the plan is to run."""
    parties: int = 2
    """How many workers share the secrets."""
    out: str = ""
    """The HDF5 file to write; by default the plan's name and `.material`."""


@dataclass(frozen=True)
class BenchOptions:
    """Measure comm (messages beside plain MPI's), clients (training) or owner (its workers)."""


@dataclass(frozen=True)
class BenchCommOptions:
    """Compare messages, broadcast and sum with plain MPI's, as tables and a PNG."""

    most_mib: int = 64
    """Size of the longest message, in MiB."""
    chunk_kib: int = CommConfig.chunk_kib
    """Size of the pieces in which long vectors travel down and up the tree."""
    out: str = "runs"
    """Folder for comm-N.json and comm-N.png."""


@dataclass(frozen=True)
class BenchClientsOptions(JobOptions):
    """Measure what a client's training costs a worker, for predict; takes the options of run."""

    out: str = "runs"
    """Folder for clients-MODEL-bBATCH.json."""


@dataclass(frozen=True)
class BenchOwnerOptions:
    """Replay rounds of an owner whose workers are played: its time and memory by their number."""

    workers: tuple[int, ...] = (10, 100, 1000, 4000)
    """Numbers of workers."""
    ways: tuple[Literal["tree", "star", "shares"], ...] = ("tree", "star")
    """Topologies, in the clear; shares: secure aggregation on the tree."""
    clients_per_worker: int = 10
    """Clients of each worker."""
    fraction: float = FederatedConfig.fraction
    """Share of the clients that train in a round."""
    model: str = Config.model
    """A model's name, as in run."""
    rounds: int = 3
    """Rounds to be measured, after one that warms up."""
    out: str = "runs"
    """Folder for owner-MODEL.json and owner-MODEL.png."""


@dataclass(frozen=True)
class PredictOptions(JobOptions):
    """Predict what a round takes on a machine, and which part limits it; for a job as in run."""

    ranks: int = 8
    """Ranks, the owner included."""
    nodes: int = 0
    """Nodes over which they are spread; 0: as many as their cores ask for."""
    cores_per_node: int = 64
    """Cores of a node."""
    rows: int = 100
    """Rows of a client."""
    test_rows: int = 10_000
    """Held-out rows."""
    latency_us: float | None = None
    """Microseconds of a message; by default as bench comm has measured, or of a usual fabric."""
    gbit: float | None = None
    """Bandwidth of a rank's link in Gbit/s, likewise."""
    bench: str = "runs"
    """Folder that bench wrote to; what it does not hold is measured now."""
    out: str = ""
    """A JSON file for the prediction."""
