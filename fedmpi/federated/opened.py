"""A job of either kind, ready to run: rounds of clients, or a training on shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedmpi.config import Config
from fedmpi.federated.job import Job
from fedmpi.federated.strategy import Strategy
from fedmpi.workers.crew import Crew

if TYPE_CHECKING:
    from fedmpi.federated.encrypted import EncryptedJob


@contextmanager
def opened(
    config: Config, crew: Crew, strategy: type[Strategy] | None = None
) -> Iterator[Job | EncryptedJob]:
    """The job of a configuration; what it left with the workers goes when the block is left.

    Args:
        config: of the job.
        crew: idle workers.
        strategy: see `Job`; a training on shares has none.

    Raises:
        FedMPIError: see `Job` and `EncryptedJob`.
    """
    crew.vigil.choose(config.comm.silence_seconds)
    if config.federated.mode != "encrypted":
        yield Job(config, crew, strategy)
        return
    # Secure computation compiles its kernels: other jobs need not wait for that.
    from fedmpi.federated.encrypted import EncryptedJob
    from fedmpi.tensors.session import session

    with session(crew) as workers:
        yield EncryptedJob(config, crew, workers)
