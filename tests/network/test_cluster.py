"""A cluster of namespaces has what real hosts have, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cluster import HOST_FILES, PREFIX, Cluster, missing
from tests.launch import ROOT

pytestmark = pytest.mark.launch

SERVER = "import socket\ns = socket.create_server(('', 99))\nprint(s.getsockname(), flush=True)\n"
ECHO = SERVER + "c, _ = s.accept()\nwhile d := c.recv(65536): c.sendall(d)"
CLIENT = """
import socket, sys, time
c = socket.create_connection(("node1", 99))
c.sendall(b"x" * 300_000)
n = 0
while n < 300_000:
    n += len(c.recv(65536))
begun = time.monotonic()
c.sendall(b"y")
c.recv(1)
print(time.monotonic() - begun, socket.gethostname(), c.getsockname()[0])
"""


def left() -> list[str]:
    """What clusters have left behind: namespaces, files, processes of a wire."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in spaces.stdout.splitlines()]
    found = [name for name in names if name.startswith(PREFIX)]
    return found + [path.name for path in HOST_FILES.glob(f"{PREFIX}-*")]


def of(pid: int) -> list[str]:
    return [name for name in left() if name.startswith(f"{PREFIX}-{pid}-")]


def echo(cluster: Cluster) -> tuple[float, str, str]:
    """300 kB from node0 to node1 and back; seconds of a byte, node0's name and address."""
    server = subprocess.Popen(
        [*cluster.on("node1"), sys.executable, "-c", ECHO], stdout=subprocess.PIPE
    )
    assert server.stdout
    server.stdout.readline()
    client = [*cluster.on("node0"), sys.executable, "-c", CLIENT]
    done = subprocess.run(client, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    server.wait(10)
    seconds, name, address = done.stdout.split()
    return float(seconds), name, address


@pytest.mark.parametrize(("rate", "delay"), [("", 0.0), ("200mbit", 0.0), ("1gbit", 0.02)])
def test_hosts_have_names_and_reach_each_other(rate: str, delay: float) -> None:
    with Cluster(3, rate, delay) as cluster:
        seconds, name, address = echo(cluster)
        assert (name, address) == ("node0", "10.0.0.1")
        assert seconds >= 2 * delay
        first, second, third = cluster.traffic()
        assert min(*first, *second) > 300_000  # a switch sends to whom it may concern
        assert max(third) < 30_000
    assert of(os.getpid()) == []


def test_a_rate_is_set_and_lifted_at_both_ends() -> None:
    with Cluster(2, "5mbit") as cluster:
        begun = time.monotonic()
        echo(cluster)
        # Less than all that went one way, since a full bucket goes at once.
        assert time.monotonic() - begun > (300_000 - 2 * 131_072) * 8 / 5e6
        cluster.limit("")
        for end in (["-n", cluster._switch], ["-n", cluster._namespace("node1")]):
            shown = subprocess.run(["tc", *end, "qdisc"], capture_output=True, text=True)
            assert "tbf" not in shown.stdout


def test_two_clusters_do_not_meet_and_keep_their_names() -> None:
    here = socket.gethostname()
    with Cluster(2) as one, Cluster(2) as other:
        quiet = other.traffic()
        echo(one)
        assert all(
            after.sent - before.sent < 30_000
            for before, after in zip(quiet, other.traffic(), strict=True)
        )
        echo(other)
    assert socket.gethostname() == here
    assert of(os.getpid()) == []


def test_nothing_is_left_after_an_error_inside() -> None:
    started = []

    def fail() -> None:
        with Cluster(2, delay=0.001) as cluster:
            started.append(subprocess.Popen([*cluster.on("node1"), "sleep", "600"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].wait(10) == -signal.SIGKILL
    assert of(os.getpid()) == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Cluster(0), "0 hosts"),
        (lambda: Cluster(201), "201 hosts"),
        (lambda: Cluster(2, "fast"), 'tc .*"?fast"?'),
        (lambda: Cluster(2, delay=-0.001), "a delay of -0.001 s"),
        (lambda: Cluster(2, delay=float("nan")), "a delay of nan s"),
    ],
    ids=["none", "many", "rate", "past", "nan"],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    make: Callable[[], Cluster], sentence: str
) -> None:
    with pytest.raises(RuntimeError, match=sentence), make():
        raise AssertionError("there is no such cluster")
    assert of(os.getpid()) == []


def test_who_cannot_make_one_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 1000)
        assert missing() == "only root may make network namespaces, and this is user 1000"
    monkeypatch.setenv("PATH", "")
    assert missing() == "ip is not installed"


def test_the_command_ends_as_its_mpirun_does_and_tells_the_traffic(tmp_path: Path) -> None:
    fake = tmp_path / "mpirun"
    fake.write_text("#!/bin/sh\n[ $1 = --version ] || { hostname; echo $6 $7; exit 3; }\n")
    fake.chmod(0o755)
    for mpirun, status in ((fake, 3), (tmp_path / "none", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cluster", "--hosts", "2", "--slots", "3",
             "--mpirun", str(mpirun), "--", "x"],
            capture_output=True, text=True, cwd=ROOT, timeout=60,
        )  # fmt: skip
        assert done.returncode == status
        if status == 3:
            assert done.stdout.splitlines() == ["node0", "node0:3,node1:3 x"]
            assert "node1: 0.00" in done.stderr
        else:
            assert done.stderr == f"cluster: {mpirun} is not installed\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """What SIGKILL leaves, the next cluster removes."""
    fake = tmp_path / "mpirun"
    fake.write_text("#!/bin/sh\n[ $1 = --version ] || { echo started; exec sleep 600; }\n")
    fake.chmod(0o755)
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.cluster", "--hosts", "2", "--mpirun", str(fake), "--", "-n"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert job.stdout
    assert job.stdout.readline() == b"started\n"
    assert of(job.pid)
    # As a terminal does it: Ctrl-C reaches all that run there.
    os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
    status = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert job.wait(20) == status
    if number == signal.SIGKILL:
        assert of(job.pid)
        with Cluster(1):
            pass
    assert of(job.pid) == []
