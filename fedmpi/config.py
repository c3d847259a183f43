"""The configuration: one tree of frozen dataclasses with defaults, types and checks.

A leaf: it imports nothing of FedMPI but its errors, so that any room may take its
own branch of the tree. `cli.py` fills the tree from the defaults, then a TOML file,
then the command line.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec
import tomli_w

from fedmpi.errors import UsageError

Partition = Literal["iid", "dirichlet", "pathological", "quantity", "natural"]
Normalise = Literal["auto", "none", "unit", "standard"]
Mode = Literal["shards", "scatter", "cyclic", "encrypted"]
Loss = Literal["auto", "cross_entropy", "bce", "mse"]
Activation = Literal["model", "relu", "polynomial", "square"]
Pooling = Literal["model", "average", "max"]


def nearest(word: str, words: object) -> str:
    """`" (did you mean 'x'?)"` for the word of `words` nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, [str(w) for w in words], n=1, cutoff=0.5)  # type: ignore[attr-defined]
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuses a value: `batch_size = 0: expected at least 1, or "full"`."""
    if not condition:
        raise UsageError(f"{key} = {value!r}: expected {expected}")


def require_choice(key: str, value: object, annotation: object) -> None:
    """Refuses a value that is not among the choices of a `Literal`, naming the nearest."""
    choices = get_args(annotation)
    require(
        value in choices,
        key,
        value,
        "one of " + ", ".join(map(str, choices)) + nearest(str(value), choices),
    )


@dataclass(frozen=True)
class Recipe:
    """How shards are made from a source: what `prepare` takes."""

    source: str = "mnist5k"
    """Dataset name, or the path of a .npz, .h5 or .hdf5 file of your own."""
    root: str = ""
    """Folder with the raw files of a torchvision dataset."""
    download: bool = False
    """Download a torchvision dataset into --root first."""
    clients: int = 28
    """Number of simulated clients, over all workers."""
    partition: Partition = "iid"
    """How rows are given to clients."""
    alpha: float = 0.3
    """Concentration of the Dirichlet distribution (dirichlet, quantity)."""
    classes_per_client: int = 2
    """Label-sorted shards that each client gets (pathological)."""
    by: str = ""
    """Column that names each row's client (natural)."""
    test_fraction: float = 0.2
    """Rows held out for evaluation when the source has no test set."""
    normalise: Normalise = "auto"
    """unit: pixels to 0..1; standard: zero mean, unit variance; auto: by kind of data."""
    partition_seed: int = 0
    """Seed of the split into clients and of the held-out rows."""

    def __post_init__(self) -> None:
        require(bool(self.source), "source", self.source, "a dataset's name or a file's path")
        require(1 <= self.clients <= 10_000_000, "clients", self.clients, "1 to 10,000,000 clients")
        require_choice("partition", self.partition, Partition)
        require_choice("normalise", self.normalise, Normalise)
        require(
            math.isfinite(self.alpha) and 0 < self.alpha <= 1e6,
            "alpha",
            self.alpha,
            "a number above 0 and at most 1e6",
        )
        require(
            1 <= self.classes_per_client <= 1000,
            "classes_per_client",
            self.classes_per_client,
            "1 to 1000",
        )
        require(
            0 < self.test_fraction < 1,
            "test_fraction",
            self.test_fraction,
            "a fraction above 0 and below 1",
        )
        require(
            0 <= self.partition_seed < 2**63, "partition_seed", self.partition_seed, "0 to 2^63 - 1"
        )
        if self.partition == "natural":
            require(bool(self.by), "by", self.by, "the column that names each row's client")


@dataclass(frozen=True)
class DataConfig(Recipe):
    """Which shards a run trains on."""

    path: str = ""
    """Folder of prepared shards; empty: made from the source at the first use, under data/."""
    cache_mib: int = 2048
    """Memory for a worker's clients, and for the owner's held-out rows; the rest is read again."""
    verify: bool = True
    """Compare every shard with the SHA-256 in the index before training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.cache_mib < 2**30, "cache_mib", self.cache_mib, "0 or more MiB")


@dataclass(frozen=True)
class FederatedConfig:
    """Federated averaging (McMahan et al. 2017, Algorithm 1)."""

    mode: Mode = "shards"
    """shards: each worker has its own; scatter: the owner splits its data at the start;
    cyclic: the model moves from client to client; encrypted: all rows train together, as shares."""
    rounds: int = 20
    """Rounds of training."""
    fraction: float = 0.5
    """C: the share of clients that train in a round."""
    epochs: int = 5
    """E: local epochs of a client in a round; encrypted: passes over all rows."""
    batch_size: int | Literal["full"] = 10
    """B: rows of a local step; full: all rows of the client (encrypted: all there are)."""
    lr: float = 0.2
    """Learning rate of local SGD."""
    lr_decay: float = 1.0
    """Factor on the learning rate after every round."""
    eval_every: int = 1
    """Evaluate on the held-out rows every k rounds, and after the last."""
    evaluate_clients: bool = False
    """Evaluate on every client's own rows too, into clients.jsonl."""
    target_accuracy: float = 0.0
    """Stop once the held-out accuracy reaches this; 0: never."""
    on_bad_update: Literal["exclude", "stop"] = "exclude"
    """What to do with a client whose update is NaN, infinite or beyond the range of the sum."""

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, Mode)
        require_choice("on_bad_update", self.on_bad_update, Literal["exclude", "stop"])
        require(1 <= self.rounds <= 10_000_000, "rounds", self.rounds, "1 to 10,000,000 rounds")
        require(
            0 < self.fraction <= 1,
            "fraction",
            self.fraction,
            "a share of the clients, above 0 and at most 1",
        )
        require(1 <= self.epochs <= 100_000, "epochs", self.epochs, "1 to 100,000 local epochs")
        require(
            self.batch_size == "full"
            or (isinstance(self.batch_size, int) and 1 <= self.batch_size < 2**31),
            "batch_size",
            self.batch_size,
            '1 to 2^31 - 1 rows, or "full"',
        )
        require(
            math.isfinite(self.lr) and 0 < self.lr <= 1e6,
            "lr",
            self.lr,
            "a number above 0 and at most 1e6",
        )
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "a factor above 0 and at most 1")
        require(
            1 <= self.eval_every <= 10_000_000,
            "eval_every",
            self.eval_every,
            "1 to 10,000,000 rounds",
        )
        require(0 <= self.target_accuracy <= 1, "target_accuracy", self.target_accuracy, "0 to 1")


@dataclass(frozen=True)
class SecureConfig:
    """Training on shares, which `federated.mode = "encrypted"` asks for."""

    parties: tuple[int, ...] = ()
    """Ranks of the workers that hold the shares, at least two; none named: all workers."""
    bits: int = 16
    """Fractional bits of the fixed-point numbers."""
    loss: Loss = "auto"
    """auto: cross-entropy, or for regression the mean squared error; bce: one logistic regression
    for each class; mse: of the outputs and one-hot labels."""
    optimizer: str = "SGD"
    """A class of torch.optim; it gets the learning rate, and the momentum if there is one."""
    momentum: float = 0.0
    """Of the optimiser."""
    activation: Activation = "model"
    """What stands in place of ReLU, sigmoid and tanh: a polynomial of degree 3 near the sigmoid,
    or the square; model: nothing does."""
    pooling: Pooling = "model"
    """What stands in place of the model's 2-d pooling; model: nothing does."""
    learns: Literal["model", "metric"] = "model"
    """What the owner learns: the outputs on its held-out rows, the training loss and at the end
    the model; or the metric on its held-out rows and nothing else."""
    clear: bool = False
    """Train the same batches in the clear instead, to compare: the owner fetches all rows."""

    def __post_init__(self) -> None:
        ranks = list(self.parties)
        require(
            0 not in ranks, "parties", ranks, "workers, rank 0 is the owner, who holds no share"
        )
        require(
            len(ranks) != 1 and len(set(ranks)) == len(ranks) and min(ranks, default=1) > 0,
            "parties",
            ranks,
            "the ranks of at least 2 different workers, or none for all",
        )
        require(8 <= self.bits <= 24, "bits", self.bits, "8 to 24 fractional bits")
        require_choice("loss", self.loss, Loss)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 or more, below 1")
        require_choice("activation", self.activation, Activation)
        require_choice("pooling", self.pooling, Pooling)
        require_choice("learns", self.learns, Literal["model", "metric"])


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

    def __post_init__(self) -> None:
        require_choice("device", self.device, Literal["auto", "cpu", "cuda"])
        require(1 <= self.threads <= 1024, "threads", self.threads, "1 to 1024 threads")


@dataclass(frozen=True)
class Config:
    """A federated job."""

    name: str = ""
    """Folder of the run under --out; empty: model, dataset and the next free number."""
    out: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of the model's first weights, the cohorts, the shuffling and the dropout."""
    model: str = "2nn"
    """softmax, linear, 2nn, cnn, lenet, resnet18, resnet18-gn, or package.module:factory."""
    data: DataConfig = field(default_factory=DataConfig)
    federated: FederatedConfig = field(default_factory=FederatedConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a model's name")
        if self.federated.mode == "scatter" and self.data.path:
            raise UsageError(
                f"path = {self.data.path!r} names prepared shards, but mode = 'scatter' splits a "
                "source at the start: leave one of the two out"
            )
        self._refuse_what_shares_cannot_do()
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        require(
            self.name not in (".", "..") and not set(self.name) & set("/\\\0"),
            "name",
            self.name,
            "a folder's name without slashes (the folder above it is --out)",
        )

    def _refuse_what_shares_cannot_do(self) -> None:
        """Options of one kind of job would be passed over in silence by the other."""
        federated, encrypted = self.federated, self.federated.mode == "encrypted"
        if not encrypted and self.secure != SecureConfig():
            [name, *_] = [
                f.name
                for f in fields(SecureConfig)
                if getattr(self.secure, f.name) != getattr(SecureConfig(), f.name)
            ]
            raise UsageError(
                f"secure.{name} = {getattr(self.secure, name)!r} with mode = {federated.mode!r}: "
                "only mode = 'encrypted' trains on shares"
            )
        if encrypted and federated.fraction not in (FederatedConfig.fraction, 1.0):
            raise UsageError(
                f"fraction = {federated.fraction:g} with mode = 'encrypted', in which all rows "
                "train: leave it out"
            )
        if encrypted and federated.evaluate_clients:
            raise UsageError(
                "evaluate_clients with mode = 'encrypted', in which nobody sees a client's rows: "
                "leave it out"
            )
        if encrypted and self.compute.device == "cuda" and not self.secure.clear:
            raise UsageError("device = 'cuda' with mode = 'encrypted': shares are on CPUs; use cpu")


def _known_keys(cls: type, prefix: str = "") -> dict[str, str]:
    """Every key of the tree: its own name to its dotted path."""
    keys: dict[str, str] = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            keys |= _known_keys(hints[f.name], f"{prefix}{f.name}.")
        keys[f.name] = prefix + f.name
    return keys


def _refuse_unknown_keys(table: dict[str, Any], cls: type, where: str, prefix: str = "") -> None:
    """msgspec checks types but passes over keys that a dataclass does not have."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    for key, value in table.items():
        if key not in names:
            known = _known_keys(Config)
            close = [known[key]] if key in known else []
            close = close or [prefix + k for k in difflib.get_close_matches(key, names, n=1)]
            close = close or [known[k] for k in difflib.get_close_matches(key, known, n=1)]
            hint = f": did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"
            raise UsageError(f"{where}: unknown key {prefix}{key}{hint}")
        if is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown_keys(value, hints[key], where, f"{prefix}{key}.")


def _choices(table: dict[str, Any], key: str) -> str:
    """`"; choices: a, b (did you mean 'a'?)"` for a key of a few words, or an empty string."""
    value: Any = table
    annotation: Any = Config
    for name in key.split("."):
        value, annotation = value[name], get_type_hints(annotation)[name]
    # The words of a Literal, or of one within a union.
    words = [
        word
        for part in (annotation, *get_args(annotation))
        for word in get_args(part)
        if isinstance(word, str)
    ]
    return f"; choices: {', '.join(words)}{nearest(str(value), words)}" if words else ""


def from_mapping(table: dict[str, Any], where: str) -> Config:
    """The configuration that a TOML table describes; what it leaves out keeps its default.

    Raises:
        UsageError: an unknown key (with the nearest known one), a wrong type, or a
            value out of range; the sentence begins with `where`.
    """
    _refuse_unknown_keys(table, Config, where)
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        what, _, key = str(error).rstrip("`").partition(" - at `$.")
        raise UsageError(f"{where}: {key}: {what}{_choices(table, key)}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def from_toml(path: str | Path) -> Config:
    """Reads a TOML file. Raises `UsageError` for all that `from_mapping` refuses."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return from_mapping(table, str(path))


def to_toml(config: Config) -> str:
    """The whole tree as TOML; `from_mapping` of its text gives an equal tree."""
    return tomli_w.dumps(asdict(config))
