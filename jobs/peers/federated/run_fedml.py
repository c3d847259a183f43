"""FedML over MPI: its FedAvg_seq, a server rank and two workers that train their clients in turn.

Each client's batches are made once, as FedML's own loader of MNIST does: rows are not shuffled
again. `fedml.init()`, which fetches settings from a server of its makers, is left out, and so are
its tests of all clients. (Its backend `sp` lets every client start from the weights of the one
before it in the first round, which is no FedAvg.)

    mpiexec -n 3 python run_fedml.py W1 --data FOLDER
"""

from __future__ import annotations

import argparse
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision_operators  # noqa: F401 - before whatever imports torchvision
from clock import Clock, arguments
from fedml import mlops
from fedml.simulation.mpi.fedavg_seq import FedAVGAggregator, FedAvgSeqAPI
from learning import Evaluation, build, tensors
from mpi4py import MPI
from workloads import BATCH, SEED, WORKERS, Clients, Workload, cohort_of

SERVER = 0
NEVER = 10**6


class Batches(dict[int, Any]):
    """Client to its batches, made when they are first asked for."""

    def __init__(self, clients: Clients) -> None:
        super().__init__()
        self._clients = clients

    def __missing__(self, client: int) -> Any:
        x, y = tensors(self._clients.load(client))
        self[client] = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        return self[client]


def settings(work: Workload, rank: int) -> SimpleNamespace:
    return SimpleNamespace(
        training_type="simulation", backend="MPI", federated_optimizer="FedAvg_seq",
        dataset="mnist", model="ours", ml_engine="torch", config_version="release",
        client_id_list="[]", client_num_in_total=work.clients, client_num_per_round=work.cohort,
        comm_round=work.rounds, epochs=1, batch_size=BATCH,
        client_optimizer="sgd", learning_rate=work.lr, weight_decay=0.0,
        frequency_of_the_test=NEVER, random_seed=SEED, using_gpu=False, is_mobile=0,
        using_mlops=False, enable_wandb=False, sys_perf_profiling=False,
        enable_attack=False, enable_defense=False, enable_dp=False,
        comm=MPI.COMM_WORLD, process_id=rank, rank=rank, worker_num=1 + WORKERS, run_id="0",
        role="server" if rank == SERVER else "client",
    )  # fmt: skip


def time_server(chosen: argparse.Namespace, work: Workload, clients: Clients) -> None:
    """Has the server sample our cohorts, and tell the clock of its rounds."""
    clock, evaluation = Clock("fedml", chosen.workload, work), Evaluation(clients.held_out())
    server = FedAVGAggregator.FedAVGAggregator
    aggregate = server.aggregate

    def client_sampling(self: Any, number: int, total: int, cohort: int) -> np.ndarray:
        if not clock.begun:
            clock.begin()
        return np.array(cohort_of(number, work))

    def timed_aggregate(self: Any) -> Any:
        found = aggregate(self)
        clock.round_done(lambda: evaluation.accuracy(self.aggregator.model))
        if len(clock.rounds) == work.rounds:
            clock.report("fedml", "mpi4py", "mpich")
        return found

    server.client_sampling, server.aggregate = client_sampling, timed_aggregate
    server.test_on_server_for_all_clients = lambda self, number: None


def main() -> None:
    chosen, work = arguments(__doc__)
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    rank = MPI.COMM_WORLD.Get_rank()
    clients = Clients(chosen.data, work.clients)
    arguments_ = settings(work, rank)
    mlops.pre_setup(arguments_)
    if rank == SERVER:
        time_server(chosen, work, clients)
    counts = {client: clients.count(client) for client in range(work.clients)}
    # Rows of all clients and of the test, their batches, and of each client: rows, batches, tests.
    nothing = dict.fromkeys(range(work.clients))
    data = [sum(counts.values()), 0, None, None, counts, Batches(clients), nothing, 10]
    FedAvgSeqAPI.FedML_FedAvgSeq_distributed(
        arguments_, rank, 1 + WORKERS, MPI.COMM_WORLD, torch.device("cpu"), data, build(work.model)
    )


if __name__ == "__main__":
    main()
