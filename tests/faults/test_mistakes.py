"""Wrong words and numbers, on the command line and in TOML: refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi import cli
from tests.faults.jobs import run
from tests.launch import Launcher


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("workers=0", "workers = 0: expected 1 to 65,536"),
        ("workers=-7", "workers = -7: expected 1 to 65,536"),
        ("workers=99999999999999999999", "expected 1 to 65,536"),
        ("workers=60000", "expected at most 1,024 in one process; run with mpirun -n 60001"),
        ("batch-size=0", "batch_size = 0: expected 1 to 2^31 - 1 rows"),
        ("batch-size=-1", "batch_size = -1"),
        ("batch-size=99999999999999999999", "batch_size = 99999999999999999999"),
        ("fraction=1.01", "fraction = 1.01: expected a share of the clients"),
        ("fraction=0", "fraction = 0.0"),
        ("fraction=-0.5", "fraction = -0.5"),
        ("fraction=nan", "fraction = nan"),
        ("rounds=0", "rounds = 0: expected 1 to 10,000,000"),
        ("rounds=-3", "rounds = -3"),
        ("rounds=99999999999999999999", "rounds = 99999999999999999999"),
        ("epochs=-1", "epochs = -1: expected 1 to 100,000"),
        ("epochs=0", "epochs = 0"),
        ("epochs=1000000000", "epochs = 1000000000"),
        ("lr=nan", "lr = nan: expected a number above 0 and at most 1e6"),
        ("lr=inf", "lr = inf"),
        ("lr=-inf", "lr = -inf"),
        ("lr=0", "lr = 0.0"),
        ("lr=1e300", "lr = 1e+300"),
        ("lr-decay=0", "lr_decay = 0.0"),
        ("lr-decay=1.5", "lr_decay = 1.5"),
        ("eval-every=0", "eval_every = 0: expected 1 to 10,000,000"),
        ("eval-every=99999999999999999999", "eval_every = 99999999999999999999"),
        ("target-accuracy=93", "target_accuracy = 93.0: expected 0 to 1"),
        ("target-accuracy=nan", "target_accuracy = nan"),
        ("alpha=0", "alpha = 0.0: expected a number above 0"),
        ("alpha=nan", "alpha = nan"),
        ("clients=0", "clients = 0"),
        ("classes-per-client=0", "classes_per_client = 0"),
        ("test-fraction=1", "test_fraction = 1.0"),
        ("partition-seed=-1", "partition_seed = -1"),
        ("seed=-1", "seed = -1: expected 0 to 2^63 - 1"),
        ("seed=9223372036854775808", "seed = 9223372036854775808"),
        ("chunk-kib=0", "chunk_kib = 0"),
        ("chunk-kib=-512", "chunk_kib = -512"),
        ("cache-mib=-1", "cache_mib = -1"),
        ("threads=0", "threads = 0"),
        ("threads=1000000", "threads = 1000000"),
        ("name=a/b", "name = 'a/b': expected a folder's name without slashes"),
        ("name=..", "name = '..'"),
        ("model=cnm", "unknown model 'cnm' (did you mean 'cnn'?): choose one of softmax"),
        ("model=resnet", "did you mean 'resnet18'?"),
        ("model=own:goood", "own has no callable 'goood' (did you mean 'good'?)"),
        ("model=no_such:thing", "cannot import no_such"),
        ("model=own:", "expected package.module:factory"),
        ("source=digit", "source = 'digit' (did you mean 'digits'?): expected one of mnist5k"),
        ("path=nowhere", "nowhere has no index.json"),
        ("config=none.toml", "cannot read the configuration none.toml: No such file"),
    ],
)
def test_a_value_that_cannot_be(
    refused, prepared: Path, here: Path, option: str, words: str
) -> None:
    where = [] if option.startswith(("source", "config")) else [f"--path={prepared}"]
    error = refused("run", "--workers=2", "--epochs=1", *where, f"--{option}")
    assert words in str(error)
    assert error.exit_status == 2
    assert not (here / "runs").exists()
    assert not (here / "data").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--roundz=3", "--rounds"),
        ("--verfy", "--verify"),
        ("--mode=shard", "'shards'"),
        ("--topology=ring", "'star'"),
        ("--partition=dirichle", "'dirichlet'"),
        ("--on-bad-update=ignore", "'exclude', 'stop'"),
        ("--device=gpu", "'cuda'"),
        ("--workers=many", "auto"),
        ("--batch-size=ful", "full"),
        ("--rounds=1.5", "'1.5'"),
        ("--config", "Missing value"),
    ],
)
def test_an_option_that_cannot_be(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", option], None, "")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""


def test_an_unknown_command(refused) -> None:
    assert "unknown command 'prepar' (did you mean 'prepare'?)" in str(refused("prepar", "digits"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds = 3", "unknown key rounds: did you mean federated.rounds?"),
        ("[federated]\nround = 3", "unknown key federated.round: did you mean federated.rounds?"),
        ("[federted]\nrounds = 3", "unknown key federted: did you mean federated?"),
        ("modle = '2nn'", "unknown key modle: did you mean model?"),
        (
            "[federated]\nmode = 'shard'",
            "federated.mode: Invalid enum value 'shard'; choices: shards",
        ),
        ("[data]\npartition = 'dirichle'", "(did you mean 'dirichlet'?)"),
        ("[federated]\nbatch_size = 'ful'", "choices: full (did you mean 'full'?)"),
        ("[federated]\nrounds = '3'", "federated.rounds: Expected `int`, got `str`"),
        ("[federated]\nrounds = 0", "rounds = 0: expected 1 to 10,000,000"),
        ("[federated]\nlr = nan", "lr = nan"),
        ("[comm]\nworkers = true", "comm.workers: Expected `int | str`, got `bool`"),
        ("federated = 3", "federated: Expected `object`, got `int`"),
        ("model = '3nm'", "unknown model '3nm'"),
        ("rounds = ", "is not TOML"),
    ],
)
def test_a_configuration_that_cannot_be(
    refused, prepared: Path, here: Path, text: str, words: str
) -> None:
    (here / "job.toml").write_text(text)
    error = refused("run", "--config=job.toml", "--workers=2", f"--path={prepared}")
    assert words in str(error)
    assert error.exit_status == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("digits --workers=-1", "workers = -1: expected 1 to 65,536"),
        ("digits --workers=9 --clients=4", "9 workers but 4 clients: use at most 4 workers"),
        ("digits --clients=99999", "99999 clients but 1438 training rows: use at most 1438"),
        ("digits --partition=natural", "by = '': expected the column"),
        ("digits --partition=natural --by=who", "by = 'who': digits has no such column; it has y"),
        ("digits --partition=pathological --classes-per-client=900", "lower one of the two"),
        ("mnist", "mnist needs train-images-idx3-ubyte"),
        ("rows.npz", "cannot read rows.npz: No such file"),
        ("rows.csv", "or the path of a .npz, .h5, .hdf5 file"),
    ],
)
def test_a_preparation_that_cannot_be(refused, here: Path, arguments: str, words: str) -> None:
    assert words in str(refused("prepare", *arguments.split(), "--out=shards"))
    assert not (here / "shards").exists()


def test_prepared_shards_are_not_replaced_unasked(refused, shards: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    error = str(refused("prepare", "digits", "--workers=2", f"--out={shards}"))
    assert f"{shards} holds a prepared dataset" in error
    assert before == {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}


@pytest.mark.launch
def test_a_mistake_under_mpirun(mpich: Launcher, here: Path) -> None:
    done = run(mpich, 3, "--source=digit", "--rounds=1")
    done.told("source = 'digit' (did you mean 'digits'?)")
    assert done.status == 2


@pytest.mark.launch
def test_a_wrong_option_under_mpirun(mpich: Launcher, here: Path) -> None:
    done = run(mpich, 4, "--roundz", "3")
    assert done.status == 2
    assert done.stderr.count("--rounds INT") == 1
    assert "Abort" not in done.stdout + done.stderr
    assert "BAD TERMINATION" not in done.stdout + done.stderr


@pytest.mark.launch
@pytest.mark.parametrize(("option", "words"), [("--help", "usage:"), ("--version", "fedmpi ")])
def test_help_and_version(here: Path, option: str, words: str) -> None:
    done = run(None, 1, option)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(words)


@pytest.mark.launch
def test_help_under_mpirun(mpich: Launcher, here: Path) -> None:
    done = run(mpich, 2, "--help")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.count("usage:") == 1
