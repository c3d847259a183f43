"""A real SLURM on this machine: munged, slurmctld, and a slurmd for each of two simulated nodes.

    with Cluster.start(folder) as cluster:
        job = cluster.submit("jobs/fedavg.sbatch", cwd=folder)
        assert cluster.wait(job, timeout=60).exit_code == 0

Nothing of the machine's own SLURM is read or written: the daemons have a configuration, a key, a
socket and ports of their own, keep all state in one folder, and run as the user who starts them.
There are no cgroups and no accounting; a step is bound to the cores by task/affinity.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("node1", "node2")
CORES = 2
"""Of each simulated node. Both have the same cores of the machine."""
SECONDS_TO_START = 30.0
SECONDS_TO_STOP = 10.0
# Debian has the daemons where an ordinary user's PATH does not look.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class Unavailable(Exception):
    """SLURM cannot be started here; says why."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its last state, its exit status, how often it was requeued."""

    state: str
    exit_code: int
    restarts: int


class Cluster:
    """A running SLURM; see `start`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._environment = environment

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path, cores: int = CORES) -> Iterator[Cluster]:
        """Starts the daemons, and ends them and all their jobs in the end.

        Args:
            folder: an empty folder whose path is short, since it will hold a socket.
            cores: of each node; with more than the machine has, ranks are not bound to any.

        Raises:
            Unavailable: a program is missing, or a daemon does not come up.
        """
        missing = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
        if missing:
            raise Unavailable(f"no {', '.join(missing)}: install slurm-wlm and munge")
        conf = _write_configuration(folder, cores)
        environment = {
            # Not of a job or a launch that this process may be part of.
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMI", "OMPI_"))},
            "PATH": _PATH,
            "SLURM_CONF": str(conf),
        }
        daemons: list[subprocess.Popen[bytes]] = []
        cluster = cls(folder, environment)
        try:
            for name, command in _daemons(folder, conf):
                with open(folder / f"{name}.out", "wb") as out:
                    daemons.append(
                        subprocess.Popen(
                            # They end with us, however we end.
                            ["setpriv", "--pdeathsig=TERM", "--", *command],
                            stdin=subprocess.DEVNULL,
                            stdout=out,
                            stderr=subprocess.STDOUT,
                            env=environment,
                            start_new_session=True,
                        )
                    )
                if name == "munged":
                    _wait_for((folder / "munge.socket").exists, "munged", daemons, folder)
            _wait_for(cluster._all_idle, "two idle nodes", daemons, folder)
            yield cluster
        finally:
            cluster._end(daemons)

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 30) -> str:
        """What a client's program prints; raises `CalledProcessError` if it fails."""
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=cwd,
            timeout=timeout,
        ).stdout

    def has_pmix(self) -> bool:
        """Whether srun can start ranks by PMIx, for which it needs libpmix.so."""
        done = subprocess.run(
            ["srun", "--mpi=pmix", "true"], capture_output=True, env=self._environment, timeout=30
        )
        return done.returncode == 0

    def submit(
        self,
        script: str | os.PathLike[str],
        *arguments: str,
        cwd: Path,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Submits a script as a person in `cwd` does; returns the job's number.

        Args:
            script: an sbatch script.
            arguments: of the script.
            cwd: the folder from which it is submitted.
            options: of sbatch, which win over those in the script.
            env: more variables for the job.
        """
        done = subprocess.run(
            ["sbatch", "--parsable", *options, os.fspath(script), *arguments],
            capture_output=True,
            text=True,
            env={**self._environment, **(env or {})},
            cwd=cwd,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split(";")[0]

    def wait(self, job: str, timeout: float) -> Ended:
        """Waits until a job, or every task of an array, has ended; the worst exit status counts.

        Raises:
            TimeoutError: it has not ended in so many seconds; it is cancelled then.
        """
        limit = time.monotonic() + timeout
        while True:
            tasks = [_fields(line) for line in self._show(job)]
            if all(task["JobState"] in _ENDED for task in tasks):
                worst = max(tasks, key=lambda task: _status(task["ExitCode"]))
                return Ended(
                    worst["JobState"], _status(worst["ExitCode"]), int(worst.get("Restarts", 0))
                )
            if time.monotonic() > limit:
                self.run("scancel", job)
                raise TimeoutError(f"job {job} after {timeout:g} s: {tasks}")
            time.sleep(0.2)

    def state(self, job: str) -> str:
        """The state of a job that is no array, such as RUNNING."""
        [line] = self._show(job)
        return _fields(line)["JobState"]

    def restarts(self, job: str) -> int:
        """How often a job that is no array has been requeued."""
        [line] = self._show(job)
        return int(_fields(line)["Restarts"])

    def _show(self, job: str) -> list[str]:
        return self.run("scontrol", "show", "job", "--oneliner", job).splitlines()

    def _all_idle(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):  # slurmctld does not answer yet
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T").split()
            return states == ["idle"] * len(NODES)
        return False

    def _end(self, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
        """Ends the jobs, then the daemons, then whatever still has our configuration."""
        with contextlib.suppress(subprocess.SubprocessError):  # slurmctld may never have come up
            self.run("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(SECONDS_TO_STOP)
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self._environment["SLURM_CONF"]:
                    process.kill()
                    left.append(process)
        psutil.wait_procs(left, timeout=SECONDS_TO_STOP)
        for daemon in daemons:
            daemon.wait()


def configuration(folder: Path, user: str, host: str, ports: Sequence[int], cores: int) -> str:
    """The text of slurm.conf.

    Args:
        folder: of all state.
        user: who starts the daemons and submits jobs.
        host: name of this machine.
        ports: of slurmctld and of each node.
        cores: of each node.
    """
    control, *of_nodes = ports
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
        f"RealMemory=1000 Gres=gpu:{CORES}"
        for node, port in zip(NODES, of_nodes, strict=True)
    )
    binding = "affinity" if cores <= len(os.sched_getaffinity(0)) else "none"
    return f"""\
ClusterName=fedmpi-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
# cred_expire is also how long a requeued job waits before it starts again.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{binding}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,sched_min_interval=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _write_configuration(folder: Path, cores: int) -> Path:
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    # A device file for each simulated GPU; nothing is ever read from it.
    (folder / "gres.conf").write_text(
        f"NodeName={','.join(NODES)} Name=gpu File=/dev/tty[0-{CORES - 1}]\n"
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    conf = folder / "slurm.conf"
    ports = _free_ports(1 + len(NODES))
    conf.write_text(configuration(folder, getpass.getuser(), socket.gethostname(), ports, cores))
    return conf


def _daemons(folder: Path, conf: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each daemon, in the order in which they start."""
    yield (
        "munged",
        [
            "munged",
            "--foreground",
            "--force",  # also as root, and in a folder that others may read
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        ],
    )
    yield "slurmctld", ["slurmctld", "-D", "-c", "-f", str(conf)]
    for node in NODES:
        yield node, ["slurmd", "-D", "-N", node, "-f", str(conf)]


def _wait_for(
    ready: object, what: str, daemons: Sequence[subprocess.Popen[bytes]], folder: Path
) -> None:
    assert callable(ready)
    limit = time.monotonic() + SECONDS_TO_START
    while not ready():
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > limit:
            told = "".join(path.read_text()[-500:] for path in sorted(folder.glob("*.out")))
            raise Unavailable(f"no {what}; ended: {dead}\n{told}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment."""
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _fields(line: str) -> dict[str, str]:
    """`JobId=3 JobState=RUNNING ...` as a dictionary."""
    return dict(re.findall(r"(\w+)=(\S*)", line))


def _status(code: str) -> int:
    """An exit status as a shell has it, of SLURM's `status:signal`."""
    status, _, signal = code.partition(":")
    return int(status) or (128 + int(signal) if int(signal) else 0)
