"""How far `fedmpi predict` is off: predicted rounds beside real ones of this machine.

    mpirun -n 8 python -m fedmpi bench comm --most-mib 8 --out runs
    python -m jobs.check_prediction --bench runs

The 5,000 digits that need no download, 28 clients, half of them in a round, E = 1, B = 10. Costs of
training are measured first, those of messages taken from the folder of `bench comm`. A row for each
model, topology and number of ranks: seconds by phase, predicted / measured; medians of the rounds
but the first. More ranks than cores share them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from fedmpi.config import CommConfig, Config, DataConfig, FederatedConfig
from fedmpi.data.index import read_index
from fedmpi.federated.metrics import PHASES, RoundMetrics
from fedmpi.study.bench_clients import measure
from fedmpi.study.cost_model import Machine
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.predict import predict
from fedmpi.study.show_prediction import network_of, owner_of
from jobs.launched import launch_fedmpi


def measured(rounds: list[RoundMetrics]) -> dict[str, float]:
    """Median seconds by phase, and of a whole round without the time between rounds."""
    phases = {p: statistics.median(m.phases[p] for m in rounds[1:]) for p in PHASES}
    return phases | {"round": statistics.median(m.seconds for m in rounds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bench", default="runs", help="folder with comm-N.json")
    parser.add_argument("--models", nargs="+", default=["2nn", "cnn"])
    parser.add_argument("--topologies", nargs="+", default=["tree", "star"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=28)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; seconds: predicted / measured", flush=True)
    print("model topology ranks " + " ".join(f"{p:>21}" for p in (*PHASES, "round")))
    with tempfile.TemporaryDirectory(prefix="fedmpi-check-") as scratch:
        for model in chosen.models:
            config = Config(
                model=model,
                data=DataConfig(clients=chosen.clients),
                federated=FederatedConfig(epochs=1, rounds=chosen.rounds, fraction=0.5),
            )
            costs = measure(config)
            network = network_of(Path(chosen.bench), None, None, costs)
            for ranks in chosen.ranks:
                shards = Path(scratch) / f"shards-{ranks}"
                if not shards.exists():
                    clients = str(chosen.clients)
                    launch_fedmpi(
                        ranks, "prepare", "mnist5k", "--clients", clients, "--out", str(shards)
                    )
                index = read_index(shards)
                machine = Machine(ranks, 1, cores)
                owner = owner_of(config, machine)
                for topology in chosen.topologies:
                    name = f"{model}-{topology}-{ranks}"
                    launch_fedmpi(
                        ranks, "run", "--path", str(shards), "--model", model, "--epochs", "1",
                        "--rounds", str(chosen.rounds), "--topology", topology, "--out", scratch,
                        "--name", name,
                    )  # fmt: skip
                    found = measured(read_metrics(Path(scratch) / name / "metrics.jsonl"))
                    of = Config(**vars(config) | {"comm": CommConfig(topology=topology)})
                    rows = round(index.rows / index.clients)
                    guess = predict(of, machine, rows, index.test.rows, costs, network, owner)
                    expected = guess.phases() | {"round": guess.seconds}
                    cells = (f"{expected.get(p, 0.0):8.4f} / {found[p]:8.4f}  " for p in found)
                    ratio = expected["round"] / found["round"]
                    row = f"{model:5} {topology:8} {ranks:5} {' '.join(cells)} {ratio:.2f}"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
