"""Flower's simulation: its FedAvg over the Message API, two Ray actors of one core each.

Flower leaves the client's epoch to its user: it is the plain loop's. Flower samples the cohort.

    python run_flwr.py W1 --data FOLDER        (with this folder on the PYTHONPATH)
"""

from __future__ import annotations

import logging

import flwr_client
import torch
from clock import Clock, arguments
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from learning import Evaluation, build
from workloads import WORKERS, Clients


def main() -> None:
    chosen, work = arguments(__doc__)
    torch.set_num_threads(chosen.threads)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    evaluation = Evaluation(Clients(chosen.data, work.clients).held_out())
    clock = Clock("flwr", chosen.workload, work)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        model = build(work.model)

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
            """Flower calls this before its first round, as round 0, and after every round."""

            def accuracy() -> float:
                model.load_state_dict(arrays.to_torch_state_dict())
                return evaluation.accuracy(model)

            if number == 0:
                clock.begin()
            else:
                clock.round_done(accuracy)
            return MetricRecord()

        strategy = FedAvg(
            fraction_train=work.cohort / work.clients,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.clients,
        )
        config = {
            "workload": chosen.workload, "data": str(chosen.data), "threads": chosen.threads,
        }  # fmt: skip
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=work.rounds,
            train_config=ConfigRecord(config),
            evaluate_fn=evaluate,
        )

    run_simulation(
        server,
        flwr_client.app,
        num_supernodes=work.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": WORKERS, "logging_level": "error", "log_to_driver": False},
        },
    )
    clock.report("flwr", "ray")


if __name__ == "__main__":
    main()
