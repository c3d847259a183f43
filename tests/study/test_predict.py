"""`fedmpi predict`: what follows from what, what is refused, and a prediction from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmpi import cli
from fedmpi.config import AggregationConfig, CommConfig, Config, DataConfig, FederatedConfig
from fedmpi.errors import DataError, UsageError
from fedmpi.study.bench_clients import Costs, path_of, read
from fedmpi.study.cost_model import Link, Machine
from fedmpi.study.fit import fit_collective, fit_messages, read_comm
from fedmpi.study.predict import predict
from fedmpi.study.prediction import Network, OwnerCosts, Prediction

COSTS = Costs("2nn", 10, 1, 800_000, 200_000, 2e-5, 1e-4, 1e-4, 5e-6, 2e-4, 1e-10)
LINK = Link(1e-5, 1e-10)
NETWORK = Network(LINK, LINK, 2e-6, "made up")
OWNER = OwnerCosts(1e-3, 2e-3, 35, 5e-4)


def found(
    ranks: int = 8,
    clients: int = 1000,
    cores: int = 2000,
    comm: CommConfig | None = None,
    **how: Any,
) -> Prediction:
    config = Config(
        data=DataConfig(clients=clients),
        federated=FederatedConfig(**{"fraction": 0.5, "epochs": 1, **how}),
        comm=comm or CommConfig(),
    )
    return predict(config, Machine(ranks, 1, cores), 100, 1000, COSTS, NETWORK, OWNER)


def test_training_is_shared_by_the_workers_and_waits_for_the_slowest() -> None:
    alone, many = found(ranks=2), found(ranks=21)
    # 500 clients of 100 rows: 2e-5 s each, and 1e-4 s.
    assert alone.phases()["train"] == pytest.approx(500 * 2.1e-3)
    assert alone.phases()["wait"] == pytest.approx(0, abs=1e-9)
    assert many.phases()["train"] == pytest.approx(25 * 2.1e-3, rel=1e-3)
    held = found(ranks=21, comm=CommConfig(balance="off"))
    assert held.phases()["wait"] > many.phases()["wait"] == pytest.approx(0, abs=1e-9)
    assert held.phases()["train"] == pytest.approx(many.phases()["train"], rel=1e-3)
    assert alone.limit.phase == "train"


def test_more_workers_than_cores_take_turns() -> None:
    free, crowded = found(ranks=9, cores=16), found(ranks=9, cores=2)
    assert crowded.load == free.load
    spread = crowded.phases()
    assert spread["train"] + spread["wait"] > 2 * free.phases()["train"]


def test_epochs_rows_and_evaluations_count() -> None:
    once, often = found(), found(epochs=10)
    assert often.phases()["train"] > 9 * once.phases()["train"]
    assert found(eval_every=10).phases()["evaluate"] == pytest.approx(5e-4)


def test_a_star_of_many_is_limited_by_the_owners_link() -> None:
    star = found(ranks=1001, clients=100_000, fraction=0.01, comm=CommConfig(topology="star"))
    tree = found(ranks=1001, clients=100_000, fraction=0.01)
    assert "star" in star.limit.name
    assert "tree" in star.limit.remedy
    assert tree.seconds < star.seconds


def test_masks_grow_with_the_cohort() -> None:
    shares = AggregationConfig(kind="shares")
    small, large = (found(fraction=f, secure=shares) for f in (0.1, 0.2))
    opening = [next(x for x in p.parts if "opening" in x.name).seconds for p in (small, large)]
    assert opening == pytest.approx([100 * 5e-4, 200 * 5e-4])
    assert small.seconds > found(fraction=0.1).seconds


def test_the_parts_add_up() -> None:
    whole = found()
    assert sum(whole.phases().values()) == pytest.approx(whole.seconds)
    assert whole.limit.seconds == max(part.seconds for part in whole.parts)
    assert all(part.seconds >= 0 for part in whole.parts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ranks", "1"], "ranks = 1: expected 2 to"),
        (["--nodes", "9"], "nodes = 9: expected 1 to 8"),
        (
            ["--ranks", "100"],
            "clients = 28 for 99 workers: raise --clients, or lower --ranks to 29",
        ),
        (["--rows", "0"], "rows = 0: expected at least 1 row"),
        (["--test-rows", "-1"], "test_rows = -1: expected 0 or more rows"),
        (["--cores-per-node", "0"], "cores_per_node = 0: expected 1 to"),
        (["--mode", "cyclic"], "mode = 'cyclic': expected shards or scatter"),
        (["--secure.kind", "ckks"], "there is no model of others"),
        (["--device", "cuda"], "device = 'cuda': expected auto or cpu"),
        (["--strategy.kind", "scaffold"], "no model of rounds with"),
        (["--latency-us", "0"], "latency_us = 0.0: expected"),
        (["--gbit", "-3"], "gbit = -3.0: expected"),
    ],
)
def test_a_bad_value_is_refused(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    # What is measured is there already, so that refusals need not wait.
    kept = path_of(tmp_path, Config())
    kept.write_text(json.dumps(COSTS.__dict__))
    with pytest.raises(UsageError) as refusal:
        cli.main(["predict", "--bench", str(tmp_path), *arguments], None, "")
    assert sentence in str(refusal.value)


def test_a_prediction_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["bench", "clients", "--model", "softmax", "--out", str(tmp_path)], None, "")
    [kept] = tmp_path.glob("clients-*.json")
    assert kept == path_of(tmp_path, Config(model="softmax"))
    costs = read(kept)
    assert costs.numel == 7850
    assert min(costs.row, costs.add, costs.evaluate_row, costs.mask, costs.sum_byte) > 0
    out = tmp_path / "new" / "prediction.json"
    arguments = ["--model", "softmax", "--bench", str(tmp_path), "--out", str(out)]
    cli.main(
        ["predict", "--ranks", "64", "--clients", "2000", "--gbit", "10", *arguments], None, ""
    )
    said = capsys.readouterr().out
    for word in ("limited by:", "what would help:", "10 Gbit/s", "a round", str(kept.name)):
        assert word in said
    record = json.loads(out.read_text())
    assert record["machine"] == {"ranks": 64, "nodes": 1, "cores": 64}
    assert record["seconds"] == pytest.approx(sum(record["phases"].values()))
    assert record["owner"]["messages"] == 5 * 63


def comm_file(folder: Path, **other: Any) -> Path:
    """As `bench comm` writes it, of 4 ranks whose every time follows from a link."""
    lines = [
        {"what": what, "how": how, "nbytes": n, "seconds": times * (1e-5 + 1e-10 * n), "least": 0}
        for n in (8, 4096, 500_000)
        for what, how, times in (
            ("exchange", "fedmpi", 1),
            ("exchange", "mpi", 1),
            ("broadcast", "fedmpi", 2),
            ("broadcast", "star", 3),
            ("sum", "fedmpi", 2),
            ("sum", "star", 3),
        )
    ]
    record = {"library": "MPI", "ranks": 4, "cores": 4, "chunk_bytes": 2**19, "lines": lines}
    path = folder / "comm-4.json"
    path.write_text(json.dumps(record | other))
    return path


def test_what_bench_comm_wrote_is_fitted(tmp_path: Path) -> None:
    comm = read_comm(comm_file(tmp_path))
    for fit in (fit_messages(comm), fit_collective(comm, "broadcast"), fit_collective(comm, "sum")):
        assert (fit.link.alpha, fit.link.beta) == pytest.approx((1e-5, 1e-10))


@pytest.mark.parametrize("other", [{"lines": []}, {"cores": 0}, {"ranks": 1}, {"ranks": "four"}])
def test_a_damaged_file_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"comm-4.json .*again"):
        read_comm(comm_file(tmp_path, **other))
    with pytest.raises(DataError, match=r"clients-x\.json"):
        read(tmp_path / "clients-x.json")
    (tmp_path / "clients-x.json").write_text("{}")
    with pytest.raises(DataError, match="measure again"):
        read(tmp_path / "clients-x.json")


def test_machines_count_what_is_on_the_fullest_node() -> None:
    machine = Machine(9, 2, 4)
    assert (machine.ranks_per_node, machine.workers_per_node) == (5, 4)
    assert replace(machine, nodes=9).workers_per_node == 1
