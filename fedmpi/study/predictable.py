"""Which jobs there is a model of."""

from __future__ import annotations

from fedmpi.config import Config, require
from fedmpi.errors import UsageError
from fedmpi.federated.needs import keeps_updates
from fedmpi.study.cost_model import Machine

MOST_RANKS = 1_048_576


def refuse(config: Config, machine: Machine) -> None:
    """Refuses what there is no model of.

    Raises:
        UsageError: a number out of range, or another kind of job.
    """
    federated = config.federated
    require(2 <= machine.ranks <= MOST_RANKS, "ranks", machine.ranks, f"2 to {MOST_RANKS:,} ranks")
    require(
        1 <= machine.nodes <= machine.ranks,
        "nodes",
        machine.nodes,
        f"1 to {machine.ranks:,} nodes, one rank or more on each",
    )
    require(1 <= machine.cores <= 65_536, "cores_per_node", machine.cores, "1 to 65,536 cores")
    if config.data.clients < machine.ranks - 1:
        raise UsageError(
            f"clients = {config.data.clients} for {machine.ranks - 1:,} workers: raise --clients, "
            f"or lower --ranks to {config.data.clients + 1}"
        )
    for name, chosen, known in (
        ("mode", federated.mode, ("shards", "scatter")),
        ("secure.kind", federated.secure.kind, ("none", "shares")),
        ("privacy.kind", federated.privacy.kind, ("none",)),
        ("device", config.compute.device, ("auto", "cpu")),
    ):
        require(chosen in known, name, chosen, f"{' or '.join(known)}: there is no model of others")
    if keeps_updates(config) or federated.strategy.kind == "scaffold":
        raise UsageError(
            "predict has no model of rounds with defences, detection, colluding attackers or "
            "SCAFFOLD, in which more than one sum travels: leave these options out"
        )
