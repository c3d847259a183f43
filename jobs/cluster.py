"""A cluster on one machine: hosts that are network namespaces, joined by a switch.

    python -m jobs.cluster --hosts 3 --rate 100mbit --delay-ms 1 -- -n 6 python -m fedmpi info

Every host has a name (node0, node1, ...), an address and an interface eth0 of its own, and a
launcher by which mpirun starts ranks on it, so that messages between hosts cross a network
stack: TCP, frames, a switch. `--rate` limits what an interface sends and receives, `--delay-ms`
is what a message needs from one host to another. docs/network.md tells more.

It needs root and Linux with ip and tc (iproute2). Each cluster has a switch in a namespace of its
own, too: nothing is changed outside its namespaces, and two clusters cannot meet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

PREFIX = "fedmpi-cluster"
HOST_FILES = Path("/etc/netns")
"""`ip netns exec` shows a namespace the files that lie here under its name as those of /etc."""
LARGEST = 200

# What mpirun calls in place of ssh: AGENT [OPTIONS] HOST COMMAND...
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec {prefix}-"$host" unshare --uts sh -c "hostname $host && $*"
"""


class Traffic(NamedTuple):
    """Bytes that a host has sent and received on its network."""

    sent: int
    received: int


class Cluster:
    """A context manager: the hosts are there inside, and nothing is left of them outside.

    Args:
        hosts: how many.
        rate: of every interface, each way, as tc writes it ("100mbit"); empty: no limit.
        delay: seconds from one host to another, on top of what the machine needs.

    Raises:
        RuntimeError: this machine or this person cannot make namespaces, or a command failed.
    """

    def __init__(self, hosts: int, rate: str = "", delay: float = 0.0) -> None:
        if not 1 <= hosts <= LARGEST:
            raise RuntimeError(f"{hosts} hosts: a cluster has 1 to {LARGEST}")
        if not 0 <= delay <= 10:
            raise RuntimeError(f"a delay of {delay:g} s: 0 to 10 s")
        self.names = [f"node{k}" for k in range(hosts)]
        self.rate = ""
        self.delay = delay
        self._first_rate = rate
        self._prefix = f"{PREFIX}-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self._switch = self._namespace("switch")
        self._before: Any = None

    def __enter__(self) -> Cluster:
        why = missing(self.delay)
        if why:
            raise RuntimeError(why)
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        # Without a handler SIGTERM would end this process and leave the namespaces.
        self._before = signal.signal(signal.SIGTERM, _leave)
        try:
            self._build()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._tear_down()

    def on(self, host: str) -> list[str]:
        """What goes before a command that shall run on a host."""
        into = ["ip", "netns", "exec", self._namespace(host), "unshare", "--uts"]
        return [*into, "sh", "-c", f'hostname {host} && exec "$@"', "sh"]

    def placed(self, mpi: str, slots: int | None = None) -> list[str]:
        """Options for mpirun on the first host: which hosts there are, and how to reach them.

        Args:
            mpi: "mpich" or "openmpi".
            slots: as many neighbouring ranks go to each host before the next is filled; None: the
                ranks go round the hosts (the first to node0, the second to node1, ...).
        """
        hosts = ",".join(f"{name}:{slots}" if slots else name for name in self.names)
        if mpi == "mpich":
            return ["-launcher", "ssh", "-launcher-exec", str(self.agent), "-hosts", hosts]
        by = "slot" if slots else "node"
        agent = ["--prtemca", "plm_ssh_agent", str(self.agent)]
        return [*agent, "--host", hosts, "--map-by", f"{by}:OVERSUBSCRIBE"]

    @staticmethod
    def environment(mpi: str) -> dict[str, str]:
        """What keeps an MPI on the network.

        UCX, in MPICH, sees that all hosts run on one kernel, and would hand messages over in
        memory; shared memory between the ranks of a host is MPICH's own and stays.
        """
        variables = {
            "mpich": {"UCX_TLS": "tcp,self"},
            "openmpi": {"OMPI_MCA_btl_tcp_if_include": "eth0"},
        }
        return variables[mpi]

    def limit(self, rate: str) -> None:
        """Another rate from now on, as `rate` of the constructor."""
        # A queue of 50 ms; a burst that holds the largest segment that TCP hands over.
        bucket = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"]
        ends = [(self._namespace(name), "eth0") for name in self.names]
        ends += [(self._switch, f"port{k}") for k in range(len(self.names))]
        for namespace, interface in ends:
            tc = ["tc", "-n", namespace, "qdisc"]
            if rate:
                _run(*tc, "replace", "dev", interface, *bucket)
            elif self.rate:
                _run(*tc, "delete", "dev", interface, "root")
        self.rate = rate

    def traffic(self) -> list[Traffic]:
        """Of every host, since it was made."""
        found = []
        for name in self.names:
            told = _ip("-j", "-s", "-n", self._namespace(name), "link", "show", "eth0")
            count = json.loads(told)[0]["stats64"]
            found.append(Traffic(count["tx"]["bytes"], count["rx"]["bytes"]))
        return found

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")
        addresses = [f"10.0.0.{k + 1}" for k in range(len(self.names))]
        known = "".join(f"{a} {n}\n" for a, n in zip(addresses, self.names, strict=True))
        for name in self.names:
            _ip("netns", "add", self._namespace(name))
            etc = HOST_FILES / self._namespace(name)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        self._lay_wires()
        for k, (name, address) in enumerate(zip(self.names, addresses, strict=True)):
            host = self._namespace(name)
            _ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", self._switch, "link", "set", f"port{k}", "master", "bridge0", "up")
        self.limit(self._first_rate)
        self.agent = self.folder / "agent"
        self.agent.write_text(AGENT.format(prefix=self._prefix))
        self.agent.chmod(self.agent.stat().st_mode | stat.S_IXUSR)

    def _lay_wires(self) -> None:
        """From eth0 of each host to a port of the switch: a veth pair, or one that takes time."""
        if self.delay:
            wire = Path(__file__).with_name("delayed_wire.py")
            command = [sys.executable, str(wire), str(len(self.names)), str(self.delay)]
            laid = subprocess.Popen(
                ["ip", "netns", "exec", self._switch, *command], stdout=subprocess.PIPE
            )
            assert laid.stdout
            if laid.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{wire.name} could not make its interfaces")
        for k, name in enumerate(self.names):
            host = self._namespace(name)
            if self.delay:
                _ip("-n", self._switch, "link", "set", f"wire{k}", "netns", host, "name", "eth0")
            else:
                pair = ["type", "veth", "peer", "name", f"port{k}", "netns", self._switch]
                _ip("link", "add", "eth0", "netns", host, *pair)

    def _tear_down(self) -> None:
        for name in ("switch", *self.names):  # the wires end before what they join
            _remove(self._namespace(name))
        shutil.rmtree(self.folder)
        signal.signal(signal.SIGTERM, self._before)


def mpi_of(mpirun: str) -> str:
    """Whose launcher it is: "mpich" or "openmpi".

    Raises:
        RuntimeError: there is no such program.
    """
    if shutil.which(mpirun) is None:
        raise RuntimeError(f"{mpirun} is not installed")
    return "openmpi" if "Open MPI" in _run(mpirun, "--version") else "mpich"


def missing(delay: float = 0.0) -> str:
    """Why there can be no cluster here; empty if there can be one."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces are Linux's, and this is {sys.platform}"
    for tool in ("ip", "tc", "unshare", "hostname"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return f"only root may make network namespaces, and this is user {os.geteuid()}"
    tried = f"{PREFIX}-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", tried], capture_output=True, text=True)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    _ip("netns", "delete", tried)
    if delay and not Path("/dev/net/tun").exists():
        return "a delay needs /dev/net/tun"
    return ""


def _sweep() -> None:
    """Removes what clusters left whose process was killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"{PREFIX}-"):
            pid = name.removeprefix(f"{PREFIX}-").split("-")[0]
            if not Path("/proc", pid).exists():
                _remove(name)


def _remove(namespace: str) -> None:
    """Kills what runs in a namespace, and removes it; nothing to do if there is none."""
    shutil.rmtree(HOST_FILES / namespace, ignore_errors=True)
    if not Path("/run/netns", namespace).exists():
        return
    while pids := _ip("netns", "pids", namespace).split():
        for pid in pids:
            subprocess.run(["kill", "-KILL", pid], stderr=subprocess.DEVNULL)
        time.sleep(0.01)
    _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--rate", default="", help="as tc writes it, such as 100mbit")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="from one host to another")
    parser.add_argument("--slots", type=int, help="neighbouring ranks a host; else one by one")
    parser.add_argument("--mpirun", default="mpirun", help="of MPICH or Open MPI")
    parser.add_argument("arguments", nargs="+", help="of mpirun, after --")
    chosen = parser.parse_args()
    try:
        mpi = mpi_of(chosen.mpirun)
        with Cluster(chosen.hosts, chosen.rate, chosen.delay_ms / 1000) as cluster:
            options = cluster.placed(mpi, chosen.slots)
            done = subprocess.run(
                [*cluster.on("node0"), chosen.mpirun, *options, *chosen.arguments],
                env=os.environ | cluster.environment(mpi),
            )
            for name, count in zip(cluster.names, cluster.traffic(), strict=True):
                sent, received = (f"{n / 1e6:.3f} MB" for n in count)
                print(f"{name}: {sent} sent, {received} received", file=sys.stderr)
            return done.returncode
    except RuntimeError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
