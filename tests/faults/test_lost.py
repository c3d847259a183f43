"""Workers that die or hang under ULFM: the others finish, with the bits of a job without faults."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from fedmpi import cli
from fedmpi.study.metrics_file import read_metrics
from fedmpi.study.outcome import RunOutcome, read_outcome
from tests.faults.jobs import Job, half_written, rounds_of, run, started
from tests.launch import Launcher, launchers
from tests.test_same_bits import digest

pytestmark = pytest.mark.launch

WORKERS = 4
ULFM = ("--with-ft", "ulfm")

FAULTY = '''
"""A model that ends or stops its process at a point: FAULTS="3:train:25 2:send:100"."""

import os
import signal
import time

from torch import nn

import fedmpi.comm.mpi


class Net(nn.Sequential):
    def forward(self, x):
        reach("train" if self.training else "eval")
        return super().forward(x)


def faulty(row_shape, classes):
    return Net(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, classes))


reached = {}


def reach(point):
    reached[point] = reached.get(point, 0) + 1
    me = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
    for fault in os.environ.get("FAULTS", "").split():
        rank, where, count = fault.split(":")
        if (rank, where, int(count)) == (me, point, reached[point]):
            kind = os.environ.get("KIND", "kill")
            if kind == "sleep":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)


send = fedmpi.comm.mpi.MpiTransport.send_buffer


def send_buffer(*arguments):
    reach("send")
    return send(*arguments)


fedmpi.comm.mpi.MpiTransport.send_buffer = send_buffer
'''


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost") / "digits"
    arguments = ["--clients=8", f"--workers={WORKERS}", f"--out={folder}"]
    cli.main(["prepare", "digits", *arguments], None, "")
    return folder


@pytest.fixture
def openmpi() -> Launcher:
    if "openmpi" not in launchers():
        pytest.skip("no Open MPI")
    return launchers()["openmpi"]


def arguments(shards: Path, *more: str) -> list[str | Path]:
    common = ["--rounds=6", "--epochs=1", "--fraction=1", "--batch-size=20", "--chunk-kib=4"]
    data = ["--source=digits", "--clients=8"] if "--mode=scatter" in more else ["--path", shards]
    return ["run", *data, "--model=faulty:faulty", *common, "--device=cpu", *more]


@pytest.fixture
def there(here: Path) -> Path:
    (here / "faulty.py").write_text(FAULTY)
    return here


def reference(shards: Path, there: Path, *more: str) -> str:
    """The bits of the same job without faults, in one process."""
    cli.main([str(a) for a in arguments(shards, "--name=reference", *more)], None, "")
    return digest(there / "runs" / "reference" / "model.h5")


def outcome_of(there: Path) -> RunOutcome:
    found = read_outcome(there / "runs" / "it" / "outcome.json")
    assert found is not None
    return found


def finish(job: Job, limit: float = 90.0) -> tuple[int, str, str]:
    """Waits for the job's own end; nothing of it is left then."""
    job.process.wait(limit)
    done = job.end()
    return done.status, done.stdout, done.stderr


def check_survived(there: Path, expected: str, dead: list[int], done: tuple[int, str, str]) -> None:
    status, out, err = done
    assert status == 0, out + err
    assert "Traceback" not in err, err
    assert digest(there / "runs" / "it" / "model.h5") == expected
    outcome = outcome_of(there)
    assert (outcome.exit_status, outcome.rounds, outcome.reason) == (0, 6, "")
    assert sorted(one.rank for one in outcome.lost) == sorted(dead)
    assert all(one.moved and not one.lost for one in outcome.lost)
    metrics = read_metrics(there / "runs" / "it" / "metrics.jsonl")
    assert sorted(one.rank for m in metrics for one in m.lost) == sorted(dead)
    last = out.strip().splitlines()[-1]
    assert all(f"rank {rank} on " in last for rank in dead), last
    logs = there / "runs" / "it" / "logs"
    assert {f.name for f in logs.iterdir()} == {f"rank-{r}.log" for r in range(WORKERS + 1)}


def survive(
    openmpi: Launcher, shards: Path, there: Path, faults: str, *more: str, kind: str = "kill"
) -> tuple[int, str, str]:
    job = arguments(shards, "--name=it", *more)
    env = {"FAULTS": faults, "KIND": kind, "OMP_NUM_THREADS": "1"}
    with started(openmpi, WORKERS + 1, *job, env=env, options=ULFM) as running:
        return finish(running)


def test_one_after_another(openmpi: Launcher, shards: Path, there: Path) -> None:
    """In training, while it passes the model on, in the sum: one worker does all in the end."""
    expected = reference(shards, there)
    done = survive(openmpi, shards, there, "3:train:50 2:send:101 4:send:61")
    check_survived(there, expected, [2, 3, 4], done)


@pytest.mark.long
@pytest.mark.parametrize("dead", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("point", "more"),
    [
        ("train:1", []),
        ("train:40", ["--mode=scatter"]),
        ("train:40", ["--mode=cyclic"]),
        ("send:3", []),
        ("send:40", []),
        ("eval:2", ["--evaluate-clients"]),
        ("train:40", ["--robust.kind=median"]),
        ("train:40", ["--detect.score"]),
    ],
)
def test_each_worker_at_each_point(
    openmpi: Launcher, shards: Path, there: Path, dead: int, point: str, more: list[str]
) -> None:
    expected = reference(shards, there, *more)
    if point == "send:3" and more == [] and dead in (1, 3):
        point = "send:40"  # leaves of the tree send nothing before the sum
    done = survive(openmpi, shards, there, f"{dead}:{point}", *more)
    check_survived(there, expected, [dead], done)


@pytest.mark.long
def test_an_idle_worker(openmpi: Launcher, shards: Path, there: Path) -> None:
    job = arguments(shards, "--rounds=3000", "--name=it")
    with started(openmpi, WORKERS + 1, *job, options=ULFM) as running:
        running.wait_for_round(there / "runs" / "it")
        for rank in (1, 4):
            running.rank(rank).kill()
            time.sleep(1.5)
        before = rounds_of(there / "runs" / "it")
        running.wait_for_round(there / "runs" / "it", before + 20)
        running.process.terminate()
        running.end()
    metrics = read_metrics(there / "runs" / "it" / "metrics.jsonl")
    assert sorted(one.rank for m in metrics for one in m.lost) == [1, 4]


@pytest.mark.parametrize("kind", ["stop", pytest.param("sleep", marks=pytest.mark.long)])
def test_a_hung_worker(openmpi: Launcher, shards: Path, there: Path, kind: str) -> None:
    expected = reference(shards, there)
    more = ["--silence-seconds=6"]
    done = survive(openmpi, shards, there, "2:train:30", *more, kind=kind)
    check_survived(there, expected, [2], done)
    [lost] = outcome_of(there).lost
    assert "worker on rank 2 (" in lost.reason
    assert "silent for 6 s" in lost.reason
    stack = (there / "runs" / "it" / "logs" / "rank-2.log").read_text()
    assert ("in reach" in stack) == (kind == "sleep"), stack


@pytest.mark.parametrize(
    "name",
    [n if n == "mpich" else pytest.param(n, marks=pytest.mark.long) for n in sorted(launchers())],
)
def test_a_hung_worker_without_ulfm(shards: Path, there: Path, name: str) -> None:
    env = {"FAULTS": "2:train:30", "KIND": "stop"}
    job = arguments(shards, "--name=it", "--silence-seconds=6")
    done = run(launchers()[name], WORKERS + 1, *job, env=env)
    assert done.status != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("fedmpi: rank 0: worker on rank 2 (") == 1, done.stderr
    assert "has been silent for 6 s" in outcome_of(there).reason
    assert half_written(there) == []


def test_a_dead_owner(openmpi: Launcher, shards: Path, there: Path) -> None:
    job = arguments(shards, "--rounds=100000", "--name=it")
    with started(openmpi, WORKERS + 1, *job, options=ULFM) as running:
        running.wait_for_round(there / "runs" / "it")
        running.rank(0).kill()
        done = running.end()
    assert done.status != 0
    assert done.stderr.count("fedmpi: rank 1: the owner (rank 0) has died") == 1, done.stderr
    assert re.search(r"rounds up to \d+ of 100000 are in runs/it/metrics\.jsonl", done.stderr)
    assert half_written(there) == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--on-lost-worker=stop"], "on_lost_worker = 'stop'"),
        pytest.param(["--secure.kind=shares"], "secure.kind = 'shares'", marks=pytest.mark.long),
        pytest.param(
            ["--strategy.kind=scaffold"], "strategy.kind = 'scaffold'", marks=pytest.mark.long
        ),
        pytest.param(
            ["--attack.kind=free_rider", "--attack.clients=2"],
            "attack.kind = 'free_rider'",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_job_that_does_not_go_on(
    openmpi: Launcher, shards: Path, there: Path, more: list[str], reason: str
) -> None:
    status, _, err = survive(openmpi, shards, there, "2:train:30", *more)
    assert status != 0
    assert "Traceback" not in err, err
    told = [line for line in err.splitlines() if line.startswith("fedmpi: ")]
    assert len(told) == 1, err
    assert "lost rank 2 on " in told[0]
    assert reason in told[0]
    outcome = outcome_of(there)
    assert outcome.exit_status == 1
    assert reason in outcome.reason
    assert half_written(there) == []


@pytest.mark.long
def test_a_shard_nobody_else_can_read(openmpi: Launcher, shards: Path, there: Path) -> None:
    """As on the disk of a node that is gone."""
    job = arguments(shards, "--rounds=3000", "--name=it")
    moved = shards.parent / "away"
    with started(openmpi, WORKERS + 1, *job, options=ULFM) as running:
        running.wait_for_round(there / "runs" / "it")
        [file] = shards.glob("*0002.h5")
        file.rename(moved)
        try:
            running.rank(2).kill()
            before = rounds_of(there / "runs" / "it")
            running.wait_for_round(there / "runs" / "it", before + 20)
            os.kill(running.rank(3).pid, signal.SIGKILL)
            running.wait_for_round(there / "runs" / "it", before + 60)
        finally:
            moved.rename(file)
        running.process.terminate()
        running.end()
    metrics = read_metrics(there / "runs" / "it" / "metrics.jsonl")
    lost = {one.rank: one for m in metrics for one in m.lost}
    assert lost[2].lost
    assert not lost[2].moved
    assert lost[3].moved
    assert not lost[3].lost
    assert metrics[-1].clients == 8 - len(lost[2].lost)


STOPPED_AND_KILLED = "stop rank=2 round=3 at=Train; kill rank=3 round=3 at=Train"


def test_a_hung_worker_beside_a_dead_one(openmpi: Launcher, shards: Path, there: Path) -> None:
    """The living come together without the one that is stopped, which is one more of the dead."""
    expected = reference(shards, there)
    job = arguments(shards, "--name=it", "--silence-seconds=8")
    env = {"FEDMPI_FAULTS": STOPPED_AND_KILLED, "OMP_NUM_THREADS": "1"}
    with started(openmpi, WORKERS + 1, *job, env=env, options=ULFM) as running:
        running.wait_for_round(there / "runs" / "it")
        done = finish(running, 30)
    check_survived(there, expected, [2, 3], done)
    hung, dead = sorted(outcome_of(there).lost, key=lambda one: one.rank)
    assert "worker on rank 2 (" in hung.reason
    assert "silent for 8 s" in hung.reason
    assert dead.reason == "its process died"
    for rank in (1, 4):
        log = (there / "runs" / "it" / "logs" / f"rank-{rank}.log").read_text()
        assert "Timeout" not in log, "who waits for the others is not silent"


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 2])
def test_a_rank_that_stops_when_the_living_have_come_together(
    openmpi: Launcher, shards: Path, there: Path, stopped: int
) -> None:
    """Nobody can say who it is: the job ends, in one sentence, and can be resumed."""
    job = arguments(shards, "--name=it", "--checkpoint.every-rounds=1")
    faults = f"kill rank=3 round=3 at=Train; stop rank={stopped} at=shrink"
    env = {"FEDMPI_FAULTS": faults, "OMP_NUM_THREADS": "1"}
    with started(openmpi, WORKERS + 1, *job, env=env, options=ULFM) as running:
        _, _, err = finish(running, 60)
    # The round before, if this one's first command had not reached it.
    assert re.search(rf"fault: stop on rank {stopped}, round [23], shrink", err), err
    assert "Traceback" not in err, err
    speaker = 0 if stopped else 1
    assert err.count(f"fedmpi: rank {speaker}: a rank has died, and another stopped when") == 1, err
    assert not (there / "runs" / "it" / "model.h5").exists()
    assert half_written(there) == []
    expected = reference(shards, there)
    cli.main(["run", "--resume", "runs/it"], None, "")
    assert digest(there / "runs" / "it" / "model.h5") == expected


def test_a_signal_while_the_others_wait_for_a_hung_worker(
    openmpi: Launcher, shards: Path, there: Path
) -> None:
    """The run leaves as ever: nobody is waited for a second time."""
    job = arguments(shards, "--name=it", "--silence-seconds=300")
    env = {"FEDMPI_FAULTS": STOPPED_AND_KILLED, "OMP_NUM_THREADS": "1"}
    with started(openmpi, WORKERS + 1, *job, env=env, options=ULFM) as running:
        running.wait_for_round(there / "runs" / "it")
        while "fault: kill on rank 3" not in running.printed()[1]:
            time.sleep(0.1)
        time.sleep(2)  # by now the others have noticed
        running.rank(0).send_signal(signal.SIGUSR1)
        done = running.end()
    assert done.status != 0
    assert "the state after round 2 of 6 is in" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert outcome_of(there).exit_status == 75
