"""The whole tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmpi.config.attack import AttackConfig
from fedmpi.config.checkpoint import CheckpointConfig
from fedmpi.config.checks import require
from fedmpi.config.data import DataConfig
from fedmpi.config.encrypted import SecureConfig
from fedmpi.config.federated import FederatedConfig
from fedmpi.config.launch import CommConfig, ComputeConfig
from fedmpi.config.together import refuse_together


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
    user_code: bool = True
    """Whether model and strategy may be code of your own; --no-user-code for files of others."""
    data: DataConfig = field(default_factory=DataConfig)
    federated: FederatedConfig = field(default_factory=FederatedConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    comm: CommConfig = field(default_factory=CommConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a model's name")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        require(
            self.name not in (".", "..")
            and self.name.isprintable()
            and not set(self.name) & {*"/\\"},
            "name",
            self.name,
            "a folder's name without slashes (the folder above it is --out) or control characters",
        )
        refuse_together(self)
