"""Jobs on hosts of their own: messages cross a network stack, and the bits stay the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from jobs.cluster import Cluster
from tests.launch import Launcher, launchers, run_single
from tests.test_same_bits import digest

pytestmark = pytest.mark.launch

RANKS = 5
MODEL_BYTES = 4 * (64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10)  # 2NN on 8 x 8 digits
JOB = ["-m", "fedmpi", "run", "--source", "digits", "--clients", "12", "--fraction", "1"]
JOB += ["--rounds", "2", "--device", "cpu", "--chunk-kib", "50", "--out"]
PLAIN_TREE = ["--hierarchy-above", "4"]
SECURE = ["--secure.kind", "shares", "--dropout", "0.3"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models of one process with one worker, in the clear and under masks."""
    out = tmp_path_factory.mktemp("alone")
    for name, options in (("clear", []), ("secure", SECURE)):
        job = [*JOB, out, "--name", name, "--workers", "1", *options]
        done = run_single(job, timeout=120, cwd=out)
        assert done.returncode == 0, done.stdout + done.stderr
    found = {name: digest(out / name / "model.h5") for name in ("clear", "secure")}
    assert found["clear"] != found["secure"]  # clients dropped out
    return found


def over(cluster: Cluster, launcher: Launcher, args: list[object], folder: Path, slots: int | None
         ) -> CompletedProcess[str]:  # fmt: skip
    """Runs a program on ranks of all hosts."""
    name = launcher.name
    inside = replace(
        launcher,
        prefix=cluster.on("node0"),
        variables={**launcher.variables, **cluster.environment(name), "OMP_NUM_THREADS": "1"},
    )
    options = cluster.placed(name, slots)
    done = inside.run(RANKS, args, timeout=120, cwd=folder, options=options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def on_every_mpi(*cases: Any, last: bool = False) -> Any:
    """The first MPI that is here, or the last, runs all cases, the others too with -m long."""
    first, *others = sorted(launchers(), reverse=last)
    marked = [
        pytest.param(name, *case, marks=pytest.mark.long) for case in cases for name in others
    ]
    return [*(pytest.param(first, *case) for case in cases), *marked]


@pytest.mark.parametrize(
    ("name", "slots", "nodes"),
    on_every_mpi(
        (None, {"node0": "0, 3", "node1": "1, 4", "node2": "2"}),
        (2, {"node0": "0-1", "node1": "2-3", "node2": "4"}),
    ),
)
def test_info_shows_the_nodes(
    cluster: Cluster, name: str, slots: int | None, nodes: dict[str, str], tmp_path: Path
) -> None:
    shown = over(cluster, launchers()[name], ["-m", "fedmpi", "info"], tmp_path, slots).stdout
    lines = [re.split("  +", line.strip()) for line in shown.splitlines()]
    assert {line[0]: line[1] for line in lines if line[0] in cluster.names} == nodes, shown


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        *on_every_mpi(("clear", [])),
        *(
            pytest.param(n, "clear", PLAIN_TREE, marks=pytest.mark.long)
            for n in sorted(launchers())
        ),
        *on_every_mpi(("secure", SECURE), last=True),
    ],
)
def test_the_same_bits_over_a_network(
    cluster: Cluster,
    alone: dict[str, str],
    name: str,
    kind: str,
    options: list[str],
    tmp_path: Path,
) -> None:
    before = cluster.traffic()
    over(cluster, launchers()[name], [*JOB, tmp_path, "--name", "job", *options], tmp_path, None)
    assert digest(tmp_path / "job" / "model.h5") == alone[kind]
    # Both rounds' models came to node1 and node2 over the network, and twice as much went back.
    for was, now in list(zip(before, cluster.traffic(), strict=True))[1:]:
        assert now.received - was.received > 2 * MODEL_BYTES
        assert now.sent - was.sent > 2 * 2 * MODEL_BYTES
