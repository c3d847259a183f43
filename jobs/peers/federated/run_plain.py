"""The reference: a plain PyTorch loop over two processes, as a person would write it.

The cohort is divided over forked workers; the global parameters and the workers' weighted sums are
in shared memory, so that nothing is sent but the clients' numbers.

    python run_plain.py W1 --data FOLDER
"""

from __future__ import annotations

import argparse
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.multiprocessing
from clock import Clock, arguments
from learning import Evaluation, build, tensors, train_epoch
from workloads import SEED, WORKERS, Clients, Workload, cohort_of


def worker(
    orders: Connection, work: Workload, clients: Clients, shared: torch.Tensor, total: torch.Tensor
) -> None:
    """Trains a share of each cohort.

    Args:
        orders: the round and the clients of each cohort; None ends the worker.
        shared: the global parameters, one flat vector.
        total: gets the sum of the clients' parameters times their rows.
    """
    model = build(work.model)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        number, cohort = order
        total.zero_()
        for client in cohort:
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(shared.clone(), model.parameters())
            seed = SEED + 1_000_003 * number + client
            train_epoch(model, *tensors(clients.load(client)), work.lr, seed)
            with torch.no_grad():
                trained = torch.nn.utils.parameters_to_vector(model.parameters())
            total.add_(trained, alpha=clients.count(client))
        orders.send("done")


def main() -> None:
    chosen, work = arguments(__doc__)
    torch.set_num_threads(chosen.threads)
    run(chosen, work)


def run(chosen: argparse.Namespace, work: Workload) -> None:
    folder: Path = chosen.data
    clients, clock = Clients(folder, work.clients), Clock("plain", chosen.workload, work)
    model, evaluation = build(work.model), Evaluation(clients.held_out())
    shared = torch.nn.utils.parameters_to_vector(model.parameters()).detach().share_memory_()
    totals = [torch.zeros_like(shared).share_memory_() for _ in range(WORKERS)]
    context = torch.multiprocessing.get_context("fork")
    crew = []
    for total in totals:
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, work, clients, shared, total))
        process.start()
        crew.append((here, process))
    for orders, _ in crew:
        orders.recv()

    def accuracy() -> float:
        torch.nn.utils.vector_to_parameters(shared, model.parameters())
        return evaluation.accuracy(model)

    clock.begin()
    for number in range(work.rounds):
        cohort = cohort_of(number, work)
        for rank, (orders, _) in enumerate(crew):
            orders.send((number, cohort[rank::WORKERS]))
        for orders, _ in crew:
            orders.recv()
        torch.add(*totals, out=shared)
        shared.div_(sum(clients.count(client) for client in cohort))
        clock.round_done(accuracy)
    for orders, process in crew:
        orders.send(None)
        process.join()
    clock.report()


if __name__ == "__main__":
    main()
