"""A job whose messages are sealed: the secret's file, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fedmpi.__main__ import _asks_for_seal
from fedmpi.comm.endpoint import Endpoint
from fedmpi.comm.sealed import SealedTransport
from fedmpi.comm.threads import Hub
from fedmpi.comm.transport import Transport
from fedmpi.errors import FedMPIError, UsageError
from fedmpi.federated.model_file import load_model
from fedmpi.workers import seal as module
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.operate import Done, Put, Wait
from fedmpi.workers.seal import Seal, read_key, seal
from fedmpi.workers.worker import Worker
from tests.comm.worlds import run_threads
from tests.launch import Launcher, each_launcher, launchers

DIGITS = "ab" * 32


@pytest.fixture(params=sorted(launchers()))
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return launchers()[request.param]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{DIGITS}\n")
    path.chmod(0o600)
    return path


def test_a_new_secret_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with in_process_crew(3) as crew:
        seal(crew, "")
        assert isinstance(crew.endpoint.transport, SealedTransport)
        crew.ask(lambda rank: module.ConfirmSeal(), module.SealConfirmed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.launch
@each_launcher(quick="mpich")
@pytest.mark.parametrize("mode", ["shards", pytest.param("cyclic", marks=pytest.mark.long)])
def test_a_launched_job_has_the_same_bits(launcher: Launcher, tmp_path: Path, mode: str) -> None:
    models = []
    for how in ([], ["--secure-transport"]):
        out = tmp_path / str(len(models))
        job = ["-m", "fedmpi", "--source=digits", "--rounds=2", f"--mode={mode}", *how]
        done = launcher.run(3, [*job, f"--out={out}", "--name=it"], timeout=100, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        models.append(load_model(out / "it" / "model.h5"))
    plain, sealed = models
    assert all(torch.equal(plain[name], sealed[name]) for name in plain)


def test_the_key_file(key_file: Path) -> None:
    assert read_key(key_file) == bytes.fromhex(DIGITS)
    with in_process_crew(2) as crew:
        seal(crew, str(key_file))
        assert isinstance(crew.endpoint.transport, SealedTransport)
    assert key_file.exists()


def test_two_jobs_with_one_secret_have_different_keys(key_file: Path) -> None:
    keys = []
    for _ in range(2):
        with in_process_crew(1) as crew:
            seal(crew, str(key_file))
            keys.append(crew.endpoint.transport._key)  # type: ignore[attr-defined]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (DIGITS, 0o644, "is open to others (mode 644): chmod 600 it"),
        (DIGITS[:-2], 0o600, "does not hold 64 hexadecimal digits: make one with"),
        ("z" * 64, 0o600, "does not hold 64 hexadecimal digits: make one with"),
        ("", 0o600, "does not hold 64 hexadecimal digits: make one with"),
        (DIGITS + "00", 0o600, "does not hold 64 hexadecimal digits: make one with"),
    ],
)
def test_a_file_that_holds_no_secret(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UsageError) as caught:
        read_key(path)
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the key file .*: No such file or directory"):
        read_key(tmp_path / "none")


def test_a_worker_that_seals_obeys_nothing_before(key_file: Path) -> None:
    """Whoever holds the owner's first message back may send another one in its place."""

    def scenario(transport: Transport) -> None:
        endpoint = Endpoint(transport)
        if transport.rank:
            Worker(endpoint, seals=True).serve()
            return
        crew = Crew(endpoint)
        seal(crew, str(key_file))
        crew.ask(lambda rank: Wait(), Done)
        crew.stop(0)

    run_threads(Hub(3), scenario)

    def forged(transport: Transport) -> None:
        endpoint = Endpoint(transport)
        if transport.rank:
            Worker(endpoint, seals=True).serve()
        else:
            Crew(endpoint).tell(1, Put(1, [], "", False), [torch.ones(3)])

    with pytest.raises(FedMPIError, match="rank 1 was started with --secure-transport and got Put"):
        run_threads(Hub(2), forged)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("", False),
        ("run --secure-transport --key-file k", True),
        ("--secure-transport --no-secure-transport", False),
        ("exec --secure-transport job.py", True),
        ("exec job.py --secure-transport", False),
    ],
)
def test_a_worker_reads_its_own_command_line(words: str, asked: bool) -> None:
    assert _asks_for_seal(words.split()) == asked


def test_a_recorded_seal_is_refused() -> None:
    """A worker that is played the messages of an earlier job does not take its keys."""
    worker = Worker(Endpoint(Hub(2).transport(1)))
    worker.store |= {module._OWN: os.urandom(32), module._SECRET: bytes(32)}
    for randomness in ([os.urandom(32)] * 2, [worker.store[module._OWN]] * 3):
        with pytest.raises(UsageError, match="rank 1 was asked to seal its messages for another"):
            module.switch(worker, Seal(randomness), [])
    assert not isinstance(worker.transport, SealedTransport)
