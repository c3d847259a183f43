"""The same configuration gives the same bits: on every number of ranks, MPI and topology.

Real launches, 11 of them (two marked long): one process with 1 and with 7 threads; mpirun -n 2, 4,
8 of MPICH and of Open MPI; and the program itself as a person starts it. To start a job takes
seconds and to run one a tenth of that, so each launch plays all jobs of `JOBS`, one after another:
that is the full product of launches, three seeds and both topologies, not a sample of it. `JOBS`
adds, for some seed each, the cyclic mode, scattered data, dropout, batch norm's counters, and the
steps of a round: strategies, masks, noise, defences and attacks.

Each kind of job is compared with itself, on one process with one worker, by the bytes of every
tensor in its model.h5.
"""

from __future__ import annotations

import hashlib
import os
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
import torch

from fedmpi.config import Recipe
from fedmpi.federated.model_file import load_model
from fedmpi.federated.seeds import derive
from fedmpi.models import build
from fedmpi.workers.shards import prepare
from tests.launch import launchers, run_single

pytestmark = pytest.mark.launch

RECIPE = Recipe(source="digits", clients=14, partition="dirichlet", alpha=1.0)
OWN = "tests.federated.factories:"
SEEDS = (0, 1, 2)


STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.25},
    "masked": {"dropout": 0.25, "secure": {"kind": "shares"}},
    "momentum": {"momentum": 0.5, "weight_decay": 0.01, "strategy": {"kind": "fedprox"}},
    "scaffold": {"strategy": {"kind": "scaffold"}},
    "fedyogi": {"strategy": {"kind": "fedyogi"}},
    "central": {"privacy": {"kind": "central", "noise_multiplier": 1.0}, "sampling": "poisson"},
    "distributed": {
        "privacy": {"kind": "distributed", "noise_multiplier": 1.0},
        "secure": {"kind": "shares"},
    },
    "local": {"privacy": {"kind": "local", "epsilon": 8.0}},
    "bulyan": {"robust": {"kind": "bulyan", "attackers": 1}},
    "detection": {"detect": {"score": True, "exclude": True}},
}
"""What a job does with updates, as TOML's [federated] says it."""


class Kind(NamedTuple):
    """One job: what is compared is named by all of it but the topology."""

    seed: int
    topology: str = "tree"
    mode: str = "shards"
    model: str = "2nn"
    steps: str = "plain"
    attack: str = "none"

    @property
    def file(self) -> str:
        return "-".join(map(str, self)).replace(":", ".") + ".h5"

    @property
    def expected(self) -> Kind:
        """The job of which this one must have the bits: scattered rows are those of shards, masks
        change nothing, and to look at honest updates does not either.
        """
        mode = "shards" if self.mode == "scatter" else self.mode
        steps = {"masked": "dropout", "detection": "plain"}.get(self.steps, self.steps)
        return self._replace(topology="tree", mode=mode, steps=steps)


JOBS = [
    *(Kind(seed, topology) for seed in SEEDS for topology in ("tree", "star")),
    *(Kind(seed, mode="cyclic") for seed in SEEDS[:2]),
    Kind(2, mode="scatter"),
    Kind(1, model=OWN + "dropout"),
    Kind(0, "star", model=OWN + "small_resnet"),
    Kind(0, model=OWN + "small_resnet"),
    *(Kind(0, steps=steps) for steps in STEPS if steps != "plain"),
    Kind(0, "star", steps="masked"),
    Kind(0, steps="bulyan", attack="alie"),
    Kind(0, attack="sign_flip"),
]


def play_all(folder: Path, workers: int) -> None:
    """What each launch runs: `python -m tests.test_same_bits FOLDER WORKERS`, 0 for MPI."""
    import fedmpi.federated.obeyed  # noqa: F401 - what is not imported is not obeyed
    from fedmpi.comm.endpoint import Endpoint
    from fedmpi.comm.launcher import launched
    from fedmpi.comm.mpi import MpiTransport
    from fedmpi.workers.crew import Crew
    from fedmpi.workers.in_process import in_process_crew
    from fedmpi.workers.worker import Worker

    if workers:
        with in_process_crew(workers) as crew:
            play_jobs(folder, crew)
        return
    endpoint = Endpoint(MpiTransport(launched()))
    try:
        if endpoint.rank:
            Worker(endpoint).serve()
        else:
            crew = Crew(endpoint)
            play_jobs(folder, crew)
            crew.stop(0)
    except BaseException:
        traceback.print_exc()
        endpoint.transport.abort(1)


def play_jobs(folder: Path, crew: Any) -> None:
    from fedmpi.config import from_mapping
    from fedmpi.federated.job import Job, Observer
    from fedmpi.federated.model_file import save_model

    transport = crew.endpoint.transport
    assert crew.in_process or transport.library().replace(" ", "").lower().startswith(
        os.environ["FEDMPI_TEST_MPI"]
    )
    shards = str(folder / f"{len(crew.ranks)}w")
    out = Path(os.environ["FEDMPI_TEST_OUT"])
    out.mkdir()
    for kind in JOBS:
        rounds = {"mode": kind.mode, "rounds": 2, "epochs": 1, "fraction": 0.6, "lr": 0.1}
        table = {
            "seed": kind.seed,
            "model": kind.model,
            "data": {**vars(RECIPE), "path": "" if kind.mode == "scatter" else shards},
            "federated": rounds | STEPS[kind.steps],
            "attack": {"kind": kind.attack},
            # Several pieces a vector, the last one shorter.
            "comm": {"topology": kind.topology, "chunk_kib": 50, "balance": "on"},
            "compute": {"device": "cpu"},
        }
        config = from_mapping(table, str(kind))
        job = Job(config, crew)
        job.run(Observer(lambda metrics: None, lambda clients: None))
        save_model(out / kind.file, job.model, config)


def digest(path: Path) -> str:
    """Of names, dtypes, shapes and bytes of all tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_model(path).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digests(done: CompletedProcess[str], out: Path) -> dict[Kind, str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return {kind: digest(out / kind.file) for kind in JOBS}


class Lab(NamedTuple):
    folder: Path

    def single(self, workers: int) -> dict[Kind, str]:
        out = self.folder / f"single-{workers}"
        env = {"FEDMPI_TEST_OUT": str(out)}
        arguments = ["-m", "tests.test_same_bits", self.folder, str(workers)]
        return digests(run_single(arguments, timeout=240, env=env), out)

    def mpirun(self, name: str, ranks: int) -> dict[Kind, str]:
        out = self.folder / f"{name}-{ranks}"
        env = {"FEDMPI_TEST_OUT": str(out), "FEDMPI_TEST_MPI": name, "OMP_NUM_THREADS": "1"}
        arguments = ["-m", "tests.test_same_bits", self.folder, "0"]
        return digests(launchers()[name].run(ranks, arguments, timeout=240, env=env), out)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The same clients in 1, 3 and 7 shards."""
    folder = tmp_path_factory.mktemp("same-bits")
    for workers in (1, 3, 7):
        prepare(RECIPE, workers, folder / f"{workers}w", None)
    return Lab(folder)


@pytest.fixture(scope="module")
def one_process(lab: Lab) -> dict[Kind, str]:
    return lab.single(1)


def test_topology_and_scatter_do_not_show_in_one_process(one_process: dict[Kind, str]) -> None:
    for kind, found in one_process.items():
        assert found == one_process[kind.expected], kind
    # The jobs do differ from each other.
    assert len(set(one_process.values())) == len({kind.expected for kind in JOBS})


def test_threads_of_one_process(lab: Lab, one_process: dict[Kind, str]) -> None:
    assert lab.single(7) == one_process


def launches() -> list[Any]:
    """Each MPI on 2, 4 and 8 ranks; all but one are left to `-m long`."""
    quick = {("mpich", 8)}
    every = [(name, ranks) for name in sorted(launchers()) for ranks in (2, 4, 8)]
    marks = {False: [pytest.mark.long], True: []}
    return [pytest.param(*one, marks=marks[one in quick]) for one in every]


@pytest.mark.parametrize(("name", "ranks"), launches())
def test_ranks_of_mpirun(lab: Lab, one_process: dict[Kind, str], name: str, ranks: int) -> None:
    assert lab.mpirun(name, ranks) == one_process


def test_the_program_itself(lab: Lab, tmp_path: Path) -> None:
    """`python -m fedmpi` as a person runs it, shards made on the way: alone and on 3 ranks."""
    job = ["--source", "digits", "--clients", "14", "--rounds", "2", "--seed", "2"]
    job += ["--device", "cpu", "--name"]
    found = {"alone": run_single(["-m", "fedmpi", *job, "alone"], timeout=120, cwd=tmp_path)}
    for name, launcher in launchers().items():
        found[name] = launcher.run(3, ["-m", "fedmpi", *job, name], timeout=120, cwd=tmp_path)
    for done in found.values():
        assert done.returncode == 0, done.stdout + done.stderr
    assert len({digest(tmp_path / "runs" / name / "model.h5") for name in found}) == 1
    torch.manual_seed(derive(2, "model"))
    first, trained = (
        build("2nn", (1, 8, 8), 10).state_dict(),
        load_model(tmp_path / "runs" / "alone" / "model.h5"),
    )
    assert all(not torch.equal(first[name], trained[name]) for name in first)


if __name__ == "__main__":
    import sys

    play_all(Path(sys.argv[1]), int(sys.argv[2]))
