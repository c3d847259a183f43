"""APPFL over MPI: its server, FedAvg, trainer and communicators, a server rank and two workers.

APPFL has as many clients as train in a round, and does not sample. A worker has a batch of them,
and each gets the rows of the sampled client before a round. `optimize_memory`, on by default,
collects garbage several times for each client; it is off here, which is 16 times faster.

    mpiexec -n 3 python run_appfl.py W1 --data FOLDER
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
import torchvision_operators  # noqa: F401 - before whatever imports torchvision
from appfl.agent.sim_client import SimClientAgent
from appfl.agent.sim_server import SimServerAgent
from appfl.comm.mpi import MPIClientCommunicator, MPIServerCommunicator
from clock import Clock, arguments
from learning import Evaluation, build, tensors
from mpi4py import MPI
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset
from workloads import BATCH, WORKERS, Clients, Workload, cohort_of

PARTS = str(Path(__file__).resolve().parent / "appfl_parts.py")
SERVER = 0


def client_config(work: Workload) -> dict[str, Any]:
    """A fresh one every time: APPFL writes into it."""
    return {
        "model_configs": {
            "model_path": PARTS, "model_name": "model", "model_kwargs": {"name": work.model},
        },
        "train_configs": {
            "trainer": "VanillaTrainer", "mode": "epoch", "num_local_epochs": 1,
            "optim": "SGD", "optim_args": {"lr": work.lr}, "loss_fn": "CrossEntropyLoss",
            "train_batch_size": BATCH, "train_data_shuffle": True, "do_validation": False,
            "metric_path": PARTS, "metric_name": "accuracy", "device": "cpu",
            "optimize_memory": False,
            "logging_output_dirname": "appfl", "logging_output_filename": "client",
        },
    }  # fmt: skip


def server_config(work: Workload) -> dict[str, Any]:
    return {
        "client_configs": client_config(work),
        "server_configs": {
            "num_clients": work.cohort, "num_global_epochs": work.rounds, "device": "cpu",
            "scheduler": "SyncScheduler",
            "scheduler_kwargs": {
                "same_init_model": True, "num_clients": work.cohort, "optimize_memory": False,
            },
            "aggregator": "FedAvgAggregator",
            "aggregator_kwargs": {"client_weights_mode": "equal", "optimize_memory": False},
            "logging_output_dirname": "appfl", "logging_output_filename": "server",
            "optimize_memory": False,
        },
    }  # fmt: skip


def serve(chosen: argparse.Namespace, work: Workload) -> None:
    """The server's rank. The clock begins when the first worker asks for the model."""
    clock = Clock("appfl", chosen.workload, work)
    evaluation = Evaluation(Clients(chosen.data, work.clients).held_out())
    model = build(work.model)
    agent = SimServerAgent(OmegaConf.create(server_config(work)))
    aggregate, get_parameters = agent.aggregator.aggregate, agent.get_parameters

    def timed_aggregate(*args: Any, **kwargs: Any) -> Any:
        state = aggregate(*args, **kwargs)

        def accuracy() -> float:
            model.load_state_dict(state)
            return evaluation.accuracy(model)

        clock.round_done(accuracy)
        return state

    def timed_get_parameters(*args: Any, **kwargs: Any) -> Any:
        if not clock.begun:
            clock.begin()
        return get_parameters(*args, **kwargs)

    agent.aggregator.aggregate, agent.get_parameters = timed_aggregate, timed_get_parameters
    MPIServerCommunicator(MPI.COMM_WORLD, agent, logger=agent.logger, optimize_memory=False).serve()
    clock.report("appfl", "mpi4py", "mpich")


def work_for(chosen: argparse.Namespace, work: Workload, rank: int) -> None:
    """A worker's rank, from 1 up."""
    clients = Clients(chosen.data, work.clients)
    loaders: dict[int, DataLoader] = {}

    def rows(client: int) -> TensorDataset:
        return TensorDataset(*tensors(clients.load(client)))

    def loader(client: int) -> DataLoader:
        if client not in loaders:
            loaders[client] = DataLoader(rows(client), batch_size=BATCH, shuffle=True)
        return loaders[client]

    places = range(rank - 1, work.cohort, WORKERS)
    agents = {
        place: SimClientAgent(
            OmegaConf.create(client_config(work) | {"optimize_memory": False}),
            client_id=str(place),
            client_dataset=rows(place),
        )
        for place in places
    }
    names = [agent.get_id() for agent in agents.values()]
    server = MPIClientCommunicator(
        MPI.COMM_WORLD, server_rank=SERVER, client_ids=names, optimize_memory=False
    )
    server.get_configuration()
    state = _parameters(server.get_global_model(init_model=True))[0]
    number, running = 0, True
    while running:
        cohort = cohort_of(number, work)
        trained, about = {}, {}
        for place, agent in agents.items():
            agent.trainer.train_dataloader = loader(cohort[place])
            agent.load_parameters(state)
            agent.train()
            name = agent.get_id()
            trained[name], about[name] = _parameters(agent.get_parameters())
        state, answers = server.update_global_model(trained, kwargs=about)
        running = any(
            isinstance(answer, dict) and answer.get("status") == "RUNNING"
            for answer in answers.values()
        )
        number += 1
    server.invoke_custom_action(action="close_connection")


def _parameters(given: Any) -> tuple[Any, dict[str, Any]]:
    """APPFL gives parameters alone, or with what is to be known of them."""
    return given if isinstance(given, tuple) else (given, {})


def main() -> None:
    chosen, work = arguments(__doc__)
    torch.set_num_threads(chosen.threads)
    logging.disable(logging.WARNING)
    rank = MPI.COMM_WORLD.Get_rank()
    if rank == SERVER:
        serve(chosen, work)
    else:
        work_for(chosen, work, rank)


if __name__ == "__main__":
    main()
