"""The configuration: one tree of frozen dataclasses with defaults, types and checks.

A leaf: it imports nothing of FedMPI but its errors, so that any room may take its own branch of
the tree. `cli/` fills the tree from the defaults, then a TOML file, then the command line.
"""

from fedmpi.config.aggregation import AggregationConfig as AggregationConfig
from fedmpi.config.aggregation import SecureKind as SecureKind
from fedmpi.config.attack import COLLUDING as COLLUDING
from fedmpi.config.attack import AttackConfig as AttackConfig
from fedmpi.config.attack import AttackKind as AttackKind
from fedmpi.config.checkpoint import CheckpointConfig as CheckpointConfig
from fedmpi.config.checks import nearest as nearest
from fedmpi.config.checks import require as require
from fedmpi.config.checks import require_choice as require_choice
from fedmpi.config.data import DataConfig as DataConfig
from fedmpi.config.data import Normalise as Normalise
from fedmpi.config.data import Partition as Partition
from fedmpi.config.data import Recipe as Recipe
from fedmpi.config.detect import DetectConfig as DetectConfig
from fedmpi.config.encrypted import Activation as Activation
from fedmpi.config.encrypted import Loss as Loss
from fedmpi.config.encrypted import Pooling as Pooling
from fedmpi.config.encrypted import SecureConfig as SecureConfig
from fedmpi.config.federated import FederatedConfig as FederatedConfig
from fedmpi.config.federated import Mode as Mode
from fedmpi.config.federated import Sampling as Sampling
from fedmpi.config.launch import CommConfig as CommConfig
from fedmpi.config.launch import ComputeConfig as ComputeConfig
from fedmpi.config.privacy import PrivacyConfig as PrivacyConfig
from fedmpi.config.privacy import PrivacyKind as PrivacyKind
from fedmpi.config.read import from_mapping as from_mapping
from fedmpi.config.read import from_toml as from_toml
from fedmpi.config.read import to_toml as to_toml
from fedmpi.config.robust import RobustConfig as RobustConfig
from fedmpi.config.robust import RobustKind as RobustKind
from fedmpi.config.strategy import DEFAULTS as DEFAULTS
from fedmpi.config.strategy import StrategyConfig as StrategyConfig
from fedmpi.config.tree import Config as Config
