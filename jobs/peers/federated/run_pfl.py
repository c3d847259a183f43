"""pfl (pfl-research): its simulated backend, FedAvg and SGD loop, over torch.distributed (gloo).

Its datasets keep the batches that they have made: rows are not shuffled again, as is its default.

    torchrun --standalone --nproc-per-node 2 run_pfl.py W1 --data FOLDER
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import torch
from clock import Clock, arguments
from learning import Evaluation, build, tensors
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import BATCH, SEED, Clients, cohort_of

NEVER = 10**6


class Net(nn.Module):
    """A model with the methods that pfl asks for."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.net = build(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        return F.cross_entropy(self.net(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Weighted]:
        return {"accuracy": Weighted(int((self.net(x).argmax(1) == y).sum()), len(y))}


class Timed(TrainingProcessCallback):
    """Tells the clock of pfl's rounds; the first rank evaluates."""

    def __init__(self, clock: Clock, net: Net, evaluation: Evaluation | None) -> None:
        self.clock, self.net, self.evaluation = clock, net, evaluation

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.clock.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        def accuracy() -> float:
            return self.evaluation.accuracy(self.net) if self.evaluation else 0.0

        self.clock.round_done(accuracy)
        return False, Metrics()


def main() -> None:
    chosen, work = arguments(__doc__)
    torch.set_num_threads(chosen.threads)
    np.random.seed(SEED)
    first = os.environ["RANK"] == "0"
    clients, clock = Clients(chosen.data, work.clients), Clock("pfl", chosen.workload, work)
    users: dict[int, Dataset] = {}

    def user(client: int) -> Dataset:
        if client not in users:
            rows = list(tensors(clients.load(client)))
            users[client] = Dataset(rows, user_id=str(client))
        return users[client]

    cohorts = (cohort_of(number, work) for number in itertools.count())
    order = itertools.chain.from_iterable(cohorts)
    data = FederatedDataset(user, lambda: next(order))
    net = Net(work.model)
    evaluation = Evaluation(clients.held_out()) if first else None
    FederatedAveraging().run(
        # Its own metrics of every client before and after training are left out.
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=NEVER,
            train_cohort_size=work.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=1000),
        callbacks=[Timed(clock, net, evaluation)],
        send_metrics_to_platform=False,
    )
    if first:
        clock.report("pfl")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
