"""The subcommands in this process: what wins over what, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fedmpi
from fedmpi import cli
from fedmpi.cli.workers import workers_of
from fedmpi.config import CommConfig, Config, DataConfig, FederatedConfig
from fedmpi.data.index import read_index
from fedmpi.errors import DataError, UsageError
from fedmpi.federated.model_file import load_model


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """The configuration with which `run` is called, instead of a run."""

    def ask(*arguments: str) -> Config:
        found: list[Config] = []
        monkeypatch.setattr(
            "fedmpi.study.recorded_run.run",
            lambda config, crew, console, resume: found.append(config),
        )
        cli.main(arguments, None, "")
        return found[0]

    return ask


# ---- options, file, defaults ----


def test_no_arguments_are_the_defaults(told) -> None:
    assert told() == told("run") == Config()


def test_options_win_over_the_file_and_the_file_over_the_defaults(told, here: Path) -> None:
    (here / "job.toml").write_text(
        "seed = 3\n[federated]\nrounds = 9\nlr = 0.5\nbatch_size = 'full'\n[comm]\nworkers = 2\n"
    )
    assert told("--config", "job.toml") == Config(
        seed=3,
        federated=FederatedConfig(rounds=9, lr=0.5, batch_size="full"),
        comm=CommConfig(workers=2),
    )
    both = told("run", "--config=job.toml", "--rounds", "4", "--batch-size=20", "--workers", "auto")
    assert both == Config(
        seed=3, federated=FederatedConfig(rounds=4, lr=0.5, batch_size=20), comm=CommConfig()
    )


def test_the_place_of_config_does_not_matter(told, here: Path) -> None:
    (here / "job.toml").write_text("seed = 3\n[federated]\nrounds = 9\n")
    expected = told("--config", "job.toml", "--rounds", "4", "--seed", "1")
    assert told("--rounds", "4", "--config", "job.toml", "--seed", "1") == expected
    assert told("--rounds", "4", "--seed", "1", "--config", "job.toml") == expected


def test_options_by_name(told) -> None:
    found = told(
        "--model", "softmax", "--source", "digits", "--clients", "9", "--evaluate-clients",
        "--no-verify", "--topology", "star", "--mode", "cyclic", "--lr=0.125", "--device=cpu",
    )  # fmt: skip
    assert found == Config(
        model="softmax",
        data=DataConfig(source="digits", clients=9, verify=False),
        federated=FederatedConfig(evaluate_clients=True, mode="cyclic", lr=0.125),
        comm=CommConfig(topology="star"),
        compute=found.compute,
    )
    assert found.compute.device == "cpu"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "many"],
        ["--rounds"],
        ["--no-such-option", "3"],
        ["--mode", "shard"],
        ["--topology=ring"],
        ["run", "digits"],
        ["prepare", "--workers", "some"],
        ["prepare", "digits", "extra"],
        ["inspect"],
        ["report"],
        ["info", "--loud"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_ends_with_status_2(arguments: list[str], told) -> None:
    with pytest.raises(SystemExit) as caught:
        told(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [["--roundz", "3"], ["--roundz=3"]], ids=str)
def test_a_wrong_option_is_told_a_near_one(
    arguments: list[str], told, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        told(*arguments)
    said = capsys.readouterr()
    assert "--roundz" in said.out + said.err
    assert "--rounds" in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "rounds = 0: expected 1 to 10,000,000 rounds"),
        (["--lr=-1"], "lr = -1.0: expected a number above 0"),
        (["--workers", "0"], "workers = 0: expected 1 to 65,536 workers"),
        (["--config", "nowhere.toml"], "cannot read the configuration nowhere.toml"),
        (["prepare", "digits", "--clients", "0"], "clients = 0"),
        (["prepare", "digits", "--workers", "65537"], "workers = 65537"),
        (["runn"], "unknown command 'runn' (did you mean 'run'?): one of run, prepare"),
        (["xyzzy"], "unknown command 'xyzzy': one of run, prepare"),
        (["--transport", "mpi"], "run mpirun -n 8 python -m fedmpi"),
        (["--transport", "mpi", "--workers", "3"], "run mpirun -n 4 python -m fedmpi"),
        (["--workers", "2000"], "workers = 2000: expected at most 1,024 in one process"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_one_sentence(arguments: list[str], said: str, told) -> None:
    with pytest.raises(UsageError) as caught:
        told(*arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize("command", ["run", "prepare", "inspect", "report", "info"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"], None, "")
    assert caught.value.code == 0
    assert f"python -m fedmpi {command}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([option], None, "")
    said = capsys.readouterr().out
    for command in ("run", "prepare", "inspect", "report", "info"):
        assert f"\n  {command} " in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"], None, "")
    assert capsys.readouterr().out == f"fedmpi {fedmpi.__version__}\n"


# ---- workers of a launch ----


def crew_of(ranks: int) -> SimpleNamespace:
    return SimpleNamespace(ranks=range(1, ranks))


@pytest.mark.parametrize(
    ("comm", "ranks", "said"),
    [
        (
            CommConfig(workers=7),
            4,
            r"workers\(7\) \+ owner\(1\) != ranks\(4\): run with mpirun -n 8",
        ),
        (CommConfig(transport="threads"), 4, r"transport = 'threads', but mpirun started 4 ranks"),
        (CommConfig(), 1, r"mpirun started 1 rank, which is the owner.*mpirun -n 8"),
        (CommConfig(workers=3), 1, r"mpirun started 1 rank, which is the owner.*mpirun -n 4"),
    ],
)
def test_a_launch_that_does_not_fit(comm: CommConfig, ranks: int, said: str) -> None:
    with pytest.raises(UsageError, match=said), workers_of(comm, "", crew_of(ranks), "mpirun"):
        pass


@pytest.mark.parametrize("workers", ["auto", 3])
def test_a_launch_that_fits(workers) -> None:
    crew = crew_of(4)
    with workers_of(CommConfig(workers=workers), "", crew, "mpirun") as found:
        assert found is crew


@pytest.mark.parametrize(("workers", "expected"), [("auto", 7), (2, 2)])
def test_threads_without_a_launcher(workers, expected: int) -> None:
    with workers_of(CommConfig(workers=workers), "", None, "") as crew:
        assert crew.in_process
        assert len(crew.ranks) == expected


# ---- prepare, inspect, run, report, info ----


def test_prepare_and_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["prepare", "digits", "--clients", "9", "--workers", "3"], None, "")
    assert capsys.readouterr().out == (
        "1438 rows of 9 clients in 3 shards, 359 rows held out: data/digits\n"
    )
    index = read_index("data/digits")
    assert (len(index.shards), index.clients, index.recipe.source) == (3, 9, "digits")
    cli.main(["inspect", "data/digits"], None, "")
    said = capsys.readouterr().out
    assert "1,438" in said or "1438" in said
    assert "drawn to data/digits/labels.png" in said
    assert (here / "data/digits/labels.png").stat().st_size > 1000
    with pytest.raises(UsageError, match="holds a prepared dataset"):
        cli.main(["prepare", "digits", "--clients", "9"], None, "")
    cli.main(["prepare", "digits", "--clients", "9", "--overwrite"], None, "")
    assert len(read_index("data/digits").shards) == 7


def test_prepare_of_a_file_of_ones_own(here: Path) -> None:
    import numpy as np

    np.savez(here / "mine.npz", x=np.zeros((40, 2), np.float32), y=np.arange(40) % 2)
    cli.main(
        ["prepare", "mine.npz", "--clients", "4", "--workers", "2", "--out", "there"], None, ""
    )
    assert read_index("there").rows == 32
    cli.main(["prepare", "mine.npz", "--clients", "4", "--workers", "1"], None, "")
    assert read_index("data/mine").clients == 4


def test_inspect_of_nothing(here: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere has no index\.json"):
        cli.main(["inspect", "nowhere"], None, "")


def test_a_run_and_its_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "job.toml").write_text("model = 'softmax'\n[data]\nsource = 'digits'\nclients = 6\n")
    job = ["--config", "job.toml", "--workers", "2", "--rounds", "2", "--device", "cpu"]
    cli.main([*job, "--name", "first"], None, "")
    assert "written to runs/first" in capsys.readouterr().out
    assert set(load_model("runs/first/model.h5")) == {"1.weight", "1.bias"}
    cli.main(["report", "runs/first"], None, "")
    assert "drawn to runs/first/report.png" in capsys.readouterr().out
    with pytest.raises(UsageError, match="first"):
        cli.main([*job, "--name", "first"], None, "")
    # The shards of the recipe were kept, and a run on them by name is the same run.
    (shards,) = (here / "data" / "auto").iterdir()
    named = ["--path", str(shards), "--model", "softmax", "--rounds", "2", "--device", "cpu"]
    cli.main([*named, "--name", "second"], None, "")
    first, second = (load_model(f"runs/{name}/model.h5") for name in ("first", "second"))
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info"], None, "")
    said = capsys.readouterr().out
    assert fedmpi.__version__ in said
    assert ".".join(map(str, sys.version_info[:3])) in said
