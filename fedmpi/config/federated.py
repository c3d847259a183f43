"""Rounds of clients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fedmpi.config.aggregation import AggregationConfig
from fedmpi.config.checks import require, require_choice
from fedmpi.config.detect import DetectConfig
from fedmpi.config.privacy import PrivacyConfig
from fedmpi.config.robust import RobustConfig
from fedmpi.config.strategy import StrategyConfig

Mode = Literal["shards", "scatter", "cyclic", "encrypted"]
Sampling = Literal["fixed", "poisson"]


def cohort_size(clients: int, fraction: float) -> int:
    """Clients of a round: m = max(C K, 1) of K (McMahan et al. 2017, Algorithm 1)."""
    return max(round(fraction * clients), 1)


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
    sampling: Sampling = "fixed"
    """fixed: that share of the clients, as many in every round; poisson: every client with that
    probability, independently of the others, so that a round may be without any."""
    epochs: int = 5
    """E: local epochs of a client in a round; encrypted: passes over all rows."""
    batch_size: int | Literal["full"] = 10
    """B: rows of a local step; full: all rows of the client (encrypted: all there are)."""
    lr: float = 0.2
    """Learning rate of local SGD."""
    momentum: float = 0.0
    """Of local SGD; every client begins a round at rest."""
    weight_decay: float = 0.0
    """L2 penalty of local SGD: that times the weights is added to the gradient."""
    lr_decay: float = 1.0
    """Factor on the learning rate after every round."""
    eval_every: int = 1
    """Evaluate on the held-out rows every k rounds, and after the last."""
    overlap_evaluation: bool = False
    """Evaluate a round while the workers train the next: for an owner with a core of its own."""
    evaluate_clients: bool = False
    """Evaluate on every client's own rows too, into clients.jsonl."""
    target_accuracy: float = 0.0
    """Stop once the held-out accuracy reaches this; 0: never."""
    on_bad_update: Literal["exclude", "stop"] = "exclude"
    """What to do with a client whose update is NaN, infinite or beyond the range of the sum."""
    on_lost_worker: Literal["continue", "stop"] = "continue"
    """What to do when a worker dies and the MPI survives that (mpirun --with-ft ulfm): go on with
    the others, who take over its clients if they can read its shard; or stop."""
    dropout: float = 0.0
    """Share of a round's clients that drop out in the middle of it and send nothing."""
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    secure: AggregationConfig = field(default_factory=AggregationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    root_rows: int = 100
    """Held-out rows that are the owner's own root set where one is needed (robust.kind = "fltrust",
    detect.root_loss); they are not evaluated."""

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, Mode)
        require_choice("sampling", self.sampling, Sampling)
        require_choice("on_bad_update", self.on_bad_update, Literal["exclude", "stop"])
        require_choice("on_lost_worker", self.on_lost_worker, Literal["continue", "stop"])
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
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 or more, below 1")
        require(
            0 <= self.weight_decay <= 1e6, "weight_decay", self.weight_decay, "a number, 0 to 1e6"
        )
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "a factor above 0 and at most 1")
        require(
            1 <= self.eval_every <= 10_000_000,
            "eval_every",
            self.eval_every,
            "1 to 10,000,000 rounds",
        )
        require(self.root_rows >= 1, "root_rows", self.root_rows, "at least 1 row")
        require(
            0 <= self.dropout < 1, "dropout", self.dropout, "a share of the clients, 0 to below 1"
        )
        require(0 <= self.target_accuracy <= 1, "target_accuracy", self.target_accuracy, "0 to 1")

    @property
    def needs_root(self) -> bool:
        """Whether the owner has a root set."""
        return self.robust.kind == "fltrust" or self.detect.root_loss
