"""One virtual environment for each peer, from PyPI: what is missing is built.

    python -m jobs.peers.federated.environments FOLDER [flwr pfl appfl fedml]

An environment that was built to its end holds a file that names its packages, and is built anew
when they change here. The plain loop has none: it runs in FedMPI's own environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

# PyTorch comes first and is held by a constraints file, so that nothing else pulls another build
# of it. It is the version that FedMPI is tested with (constraints.txt).
TORCH = "torch==2.13.0"
MPI = ["mpi4py==4.1.2", "mpich==5.0.2"]

INSTALLS: dict[str, list[list[str]]] = {
    # 1.42.0 asks for a release of certifi that not every index has: its own dependencies are those
    # of 1.41.0.
    "flwr": [["flwr[simulation]==1.41.0"], ["--no-deps", "flwr==1.42.0"]],
    "pfl": [["pfl[pytorch]==0.6.0"]],
    "appfl": [["torchvision==0.28.0"], ["appfl==1.12.0", *MPI]],
    # It imports pkg_resources, which setuptools 81 has no more.
    "fedml": [["torchvision==0.28.0"], ["fedml==0.9.6", "setuptools<81", *MPI]],
}
"""What pip installs after PyTorch, in this order."""

LIMIT = 1800.0
"""Seconds for each call of pip."""


class NotBuilt(Exception):
    """An environment cannot be built; the message is the last line of the log."""


def python_of(folder: Path, peer: str) -> Path:
    return folder / peer / "bin" / "python"


def build(folder: Path, peer: str) -> None:
    """Builds a peer's environment unless it is there; its log is FOLDER/PEER.log.

    Raises:
        NotBuilt: what pip said at last.
    """
    installs = [[TORCH], *INSTALLS[peer]]
    built, packages = folder / peer / "built.txt", "\n".join(map(" ".join, installs)) + "\n"
    if built.exists() and built.read_text() == packages:
        return
    print(f"building {folder / peer}, which takes minutes", file=sys.stderr, flush=True)
    shutil.rmtree(folder / peer, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    # Pip's word about its own newest version would be the last, where the reason is looked for.
    pip = [str(python_of(folder, peer)), "-m", "pip", "--disable-pip-version-check"]
    pip += ["install", "-q", "-c", str(constraints)]
    with (folder / f"{peer}.log").open("w") as log:
        _call([sys.executable, "-m", "venv", str(folder / peer)], log)
        for packages_together in installs:
            _call([*pip, *packages_together], log)
    built.write_text(packages)


def _call(command: list[str], log: IO[str]) -> None:
    try:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{' '.join(command[1:])}: not done after {error.timeout:g} s") from None
    if done.returncode:
        said = [line for line in Path(log.name).read_text().splitlines() if line.strip()]
        raise NotBuilt(said[-1] if said else f"pip ended with status {done.returncode}")


if __name__ == "__main__":
    for name in sys.argv[2:] or INSTALLS:
        build(Path(sys.argv[1]), name)
