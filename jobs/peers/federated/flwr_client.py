"""Flower's ClientApp. It is a module of its own, so that Ray's actors import it by name."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from learning import build, tensors, train_epoch
from workloads import SEED, WORKLOADS, Clients

app = ClientApp()


@functools.cache
def resident(workload: str, data: str, threads: int) -> tuple[torch.nn.Module, Clients]:
    """An actor's model and its clients, made once."""
    torch.set_num_threads(threads)
    work = WORKLOADS[workload]
    return build(work.model), Clients(Path(data), work.clients)


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    workload = str(config["workload"])
    model, clients = resident(workload, str(config["data"]), int(config["threads"]))
    client = int(context.node_config["partition-id"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    seed = SEED + 1_000_003 * int(config["server-round"]) + client
    train_epoch(model, *tensors(clients.load(client)), WORKLOADS[workload].lr, seed)
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": clients.count(client)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
