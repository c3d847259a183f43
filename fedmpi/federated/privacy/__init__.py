"""Differential privacy of the model: the kinds, and which of them a job asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmpi.config import Config
from fedmpi.errors import UsageError
from fedmpi.federated.privacy.base import Privacy
from fedmpi.federated.privacy.central import Central
from fedmpi.federated.privacy.distributed import Distributed


def privacy_of(config: Config, vectors: Sequence[torch.Tensor], clients: int) -> Privacy | None:
    """The privacy of the model that a configuration asks for, if any.

    Args:
        config: of the job.
        vectors: of the model's state.
        clients: of the job.

    Raises:
        UsageError: it cannot be had for this model, or within this budget.
    """
    kind = config.federated.privacy.kind
    if kind not in ("central", "distributed"):
        return None
    for vector in vectors:
        if not vector.is_floating_point():
            raise UsageError(
                f"privacy.kind = {kind!r} with model {config.model}, whose state has "
                f"{str(vector.dtype).removeprefix('torch.')} values (batch norm counts its steps), "
                "to which no noise can be added: use a model with group norm, as resnet18-gn"
            )
    numel = sum(vector.numel() for vector in vectors)
    return (Central if kind == "central" else Distributed)(config, numel, clients)
