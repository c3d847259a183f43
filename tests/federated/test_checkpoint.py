"""A run that goes on from a checkpoint has the bits of the run that was never interrupted."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fedmpi.config import CheckpointConfig, Config, PrivacyConfig, from_mapping
from fedmpi.errors import (
    DataError,
    FedMPIError,
    ForeignFileError,
    Interrupted,
    Suspended,
    UsageError,
)
from fedmpi.federated import client_memory
from fedmpi.federated import job as job_module
from fedmpi.federated.checkpoint import remove, rounds_in
from fedmpi.federated.checkpoint_file import (
    About,
    Checkpoint,
    ClientsFile,
    read_checkpoint,
    write_checkpoint,
)
from fedmpi.federated.model_file import load_model, save_model
from fedmpi.study.outcome import RunOutcome, read_outcome
from fedmpi.study.recorded_run import run
from fedmpi.study.run_folder import RunFolder
from fedmpi.workers.in_process import in_process_crew
from tests.federated.lab import config_of, with_path
from tests.launch import ROOT

OWN = "tests.federated.factories:"
JOBS: dict[str, dict[str, Any]] = {
    "clear": {},
    "batch norm": {"model": OWN + "small_resnet"},
    "masked": {"secure": {"kind": "shares"}, "dropout": 0.25},
    "scaffold": {"strategy": {"kind": "scaffold"}},
    "masked scaffold": {"strategy": {"kind": "scaffold"}, "secure": {"kind": "shares"}},
    "fedavgm": {"strategy": {"kind": "fedavgm"}},
    "fedadam": {"strategy": {"kind": "fedadam"}},
    "adaptive": {"privacy": {"kind": "central", "noise_multiplier": 1.0, "adaptive": 0.5}},
    "distributed": {
        "privacy": {"kind": "distributed", "noise_multiplier": 1.0},
        "secure": {"kind": "shares"},
    },
    "local": {"privacy": {"kind": "local", "noise_multiplier": 1.0}},
    "detection": {"detect": {"score": True, "exclude": True}, "attack": "scaled"},
    "centred clipping": {"robust": {"kind": "centred_clipping"}},
    "free riders": {"attack": "free_rider"},
    "cyclic": {"mode": "cyclic"},
    "scattered": {"mode": "scatter", "evaluate_clients": True},
}
"""By what they carry from round to round."""


def job(folder: Path, kind: str, workers: int = 2) -> Config:
    """Four rounds, with a checkpoint after each."""
    options = dict(JOBS[kind])
    attack, model = options.pop("attack", "none"), options.pop("model", "softmax")
    mode = options.pop("mode", "shards")
    steps = from_mapping({"federated": {"mode": mode, **options}}, kind).federated
    names = ["mode", *options]
    federated = {name: getattr(steps, name) for name in names}
    config = config_of(
        folder,
        workers,
        model=model,
        rounds=4,
        epochs=1,
        **dict(federated.items()),
    )
    table = {"kind": attack, "clients": 2} if attack != "none" else {}
    return replace(
        config,
        attack=from_mapping({"attack": table}, kind).attack,
        checkpoint=CheckpointConfig(every_rounds=1, keep=4),
        out=str(folder / "runs"),
        name="it",
    )


def play(config: Config, workers: int, resume: str = "") -> tuple[RunFolder, str]:
    out = io.StringIO()
    with in_process_crew(workers) as crew:
        folder = run(config, crew, Console(file=out, width=200), resume=resume).folder
    return folder, out.getvalue()


def bits(folder: RunFolder) -> dict[str, bytes]:
    state = load_model(folder.model)
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in state.items()}


def records(path: Path) -> list[dict[str, Any]]:
    """All but what depends on the clock and on who holds a client."""
    timed = {"seconds", "phases", "train_max", "bytes_sent", "messages_sent", "idle_seconds"}
    timed |= {"idle_cpu", "mask_seconds", "rank", "suspects"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def as_killed_after(folder: RunFolder, number: int) -> None:
    """What a run leaves that was killed in a later round than that of its newest checkpoint."""
    folder.model.unlink()
    for later in rounds_in(folder.checkpoints):
        if later > number:
            for path in folder.checkpoints.glob(f"round-{later:06}.*"):
                path.unlink()


def resumed(config: Config) -> Config:
    return replace(config, name="")


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_the_same_bits_on_another_number_of_workers(kind: str, tmp_path: Path) -> None:
    config = job(tmp_path, kind)
    folder, _ = play(config, 2)
    expected, lines = bits(folder), records(folder.metrics)
    assert rounds_in(folder.checkpoints) == [4, 3, 2, 1]
    as_killed_after(folder, 2)
    config = resumed(config)
    if config.data.path:
        config = with_path(config, tmp_path, 3)
    others = {p: records(p) for p in (folder.clients, folder.scores) if p.exists()}
    again, said = play(config, 3, str(folder.path))
    assert "going on after round 2 of 4" in said
    assert again.path == folder.path
    assert bits(again) == expected
    assert records(folder.metrics) == lines
    for path, expected_lines in others.items():
        assert sorted(map(str, records(path))) == sorted(map(str, expected_lines))
    assert not list(folder.checkpoints.glob(".*"))


def test_a_run_is_extended(tmp_path: Path) -> None:
    config = job(tmp_path, "fedadam")
    short = replace(config, federated=replace(config.federated, rounds=2), name="short")
    expected = bits(play(config, 2)[0])
    folder, _ = play(short, 2)
    with pytest.raises(UsageError, match="has ended after 2 of 2 rounds: ask for more --rounds"):
        play(resumed(short), 2, str(folder.path))
    _, said = play(resumed(config), 2, str(folder.path))
    assert "going on after round 2 of 4, with federated.rounds = 4 (was 2)" in said
    assert bits(folder) == expected
    assert len(records(folder.metrics)) == 4


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, dict[str, bytes]]:
    """A run with SCAFFOLD that was killed after the checkpoints of rounds 1 to 3."""
    folder = tmp_path_factory.mktemp("killed")
    config = job(folder, "scaffold")
    run_folder, _ = play(config, 2)
    expected = bits(run_folder)
    as_killed_after(run_folder, 3)
    return folder, resumed(config), expected


@pytest.fixture
def copy(killed, tmp_path: Path) -> tuple[RunFolder, Config, dict[str, bytes]]:
    folder, config, expected = killed
    path = shutil.copytree(folder / "runs" / "it", tmp_path / "it")
    return RunFolder(Path(path)), config, expected


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a bit", "first byte", "a client's file"])
def test_a_damaged_newest_checkpoint_gives_way(damage: str, copy) -> None:
    folder, config, expected = copy
    newest = folder.checkpoints / "round-000003.h5"
    size = newest.stat().st_size
    match damage:
        case "truncated":
            newest.write_bytes(newest.read_bytes()[: size // 2])
        case "empty":
            newest.write_bytes(b"")
        case "a bit":
            flip(newest, size - 100)
        case "first byte":
            flip(newest, 0)
        case "a client's file":
            other = folder.checkpoints / "round-000003.clients-2.h5"
            flip(other, other.stat().st_size - 100)
    _, said = play(config, 2, str(folder.path))
    assert "set aside, going on from the checkpoint after round 2\n" in said
    assert newest.with_name("round-000003.h5.damaged").exists()
    assert bits(folder) == expected


def test_every_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(tmp_path: Path) -> None:
    about = About(3, "seed = 1", "ab" * 32, [ClientsFile("x.h5", "cd" * 32, [1, 2])])
    state = {
        "model/0": torch.arange(20.0),
        "privacy/rounds": torch.tensor(3),
        "a/b": torch.empty(0),
    }
    path = tmp_path / "round-000003.h5"
    write_checkpoint(path, Checkpoint(about, state))
    whole = path.read_bytes()
    for at in range(0, len(whole), 13):
        flip(path, at)
        with suppress(DataError):
            found = read_checkpoint(path)
            assert found.about == about
            assert {k: t.tolist() for k, t in found.state.items()} == {
                k: t.tolist() for k, t in state.items()
            }
        path.write_bytes(whole)


def test_no_checkpoint_can_be_read(copy) -> None:
    folder, config, _ = copy
    for path in folder.checkpoints.glob("round-*.h5"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no checkpoint in .* can be read .* remove the folder to"):
        play(config, 2, str(folder.path))
    shutil.rmtree(folder.checkpoints)
    _, said = play(config, 2, str(folder.path))
    assert "going on after round 0 of 4\n" in said


def test_a_file_that_is_no_checkpoint(copy) -> None:
    folder, config, _ = copy
    save_model(folder.checkpoints / "round-000009.h5", torch.nn.Linear(2, 2), config)
    with pytest.raises(ForeignFileError, match="expected the format 'fedmpi-checkpoint', found"):
        play(config, 2, str(folder.path))


def test_a_checkpoint_of_another_run(copy, tmp_path: Path) -> None:
    folder, config, _ = copy
    path = folder.checkpoints / "round-000003.h5"
    found = read_checkpoint(path)
    text = found.about.config.replace("seed = 0\n", "seed = 7\n", 1)
    write_checkpoint(path, Checkpoint(replace(found.about, config=text), found.state))
    with pytest.raises(UsageError, match=r"is a checkpoint of another run .* seed = 0 \(was 7\)"):
        play(config, 2, str(folder.path))
    write_checkpoint(path, Checkpoint(replace(found.about, dataset="0" * 64), found.state))
    with pytest.raises(UsageError, match=r"is of other data: expected .*, found 000000000000"):
        play(config, 2, str(folder.path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "\x1b[2J.h5"}, r"holds no clients' file '\x1b[2J.h5': set aside"),
        ({"sha256": "\x1b[2J"}, r"expected the SHA-256 '\x1b[2J', found"),
    ],
)
def test_clients_that_cannot_be(copy, changes: dict[str, Any], said: str) -> None:
    folder, config, expected = copy
    path = folder.checkpoints / "round-000003.h5"
    found = read_checkpoint(path)
    first, *others = found.about.clients
    about = replace(found.about, clients=[replace(first, **changes), *others])
    write_checkpoint(path, Checkpoint(about, found.state))
    _, told = play(config, 2, str(folder.path))
    assert said in told.replace("\n", " ")
    assert bits(folder) == expected


def test_clients_that_the_job_does_not_have(copy) -> None:
    """Nothing is damaged: somebody has put it there."""
    folder, config, _ = copy
    path = folder.checkpoints / "round-000003.h5"
    found = read_checkpoint(path)
    first, *others = found.about.clients
    about = replace(found.about, clients=[replace(first, clients=[1, 99]), *others])
    write_checkpoint(path, Checkpoint(about, found.state))
    with pytest.raises(DataError, match=r"is whole, but .* client 99, whom the job does not have"):
        play(config, 2, str(folder.path))


def test_metrics_that_were_lost(copy) -> None:
    folder, config, _ = copy
    folder.metrics.write_text(folder.metrics.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="has 2 of the 3 rounds up to the checkpoint"):
        play(config, 2, str(folder.path))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    config = replace(job(tmp_path, "scaffold"), checkpoint=CheckpointConfig(every_rounds=1, keep=2))
    folder, _ = play(config, 2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        f"round-00000{number}{what}.h5"
        for number in (3, 4)
        for what in (".clients-1", ".clients-2", "")
    ]


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    config = replace(job(tmp_path, "clear"), checkpoint=CheckpointConfig(0, 0.0))
    folder, _ = play(config, 2)
    assert not folder.checkpoints.exists()


def test_one_at_the_end_by_default(tmp_path: Path) -> None:
    config = replace(job(tmp_path, "clear"), checkpoint=CheckpointConfig())
    folder, _ = play(config, 2)
    assert rounds_in(folder.checkpoints) == [4]


def test_a_disk_error_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    config = job(tmp_path, "clear")
    out = io.StringIO()
    with in_process_crew(2) as crew, pytest.MonkeyPatch.context() as patch:
        create = RunFolder.create

        def blocked(config: Config) -> RunFolder:
            folder = create(config)
            folder.checkpoints.write_text("in the way")
            return folder

        patch.setattr(RunFolder, "create", blocked)
        done = run(config, crew, Console(file=out, width=200))
    assert len(done.metrics) == 4
    assert out.getvalue().count("no checkpoint: cannot make") >= 4
    assert "the run goes on" in out.getvalue()


def test_two_that_go_on_at_once(copy) -> None:
    """The second leaves nothing in the folder, an outcome least of all."""
    folder, config, _ = copy
    folder.outcome.unlink()
    with open(folder.metrics, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written by another process"):
            play(config, 2, str(folder.path))
    assert not folder.outcome.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seed": 3, "model": "2nn"}, r"cannot go on with seed = 3 \(was 0\), model = '2nn' \(was"),
        ({"name": "other"}, "--name other with --resume .*: a run stays in its folder"),
        ({"out": "elsewhere"}, "--out elsewhere with --resume .*: a run stays in its folder"),
    ],
)
def test_what_may_not_change(copy, options: dict[str, Any], sentence: str) -> None:
    folder, config, _ = copy
    with pytest.raises(UsageError, match=sentence):
        play(replace(config, **options), 2, str(folder.path))


def test_noise_that_was_chosen_for_the_rounds(tmp_path: Path) -> None:
    from fedmpi.study.resume import falsifying

    config = job(tmp_path, "clear")
    private = from_mapping(
        {"federated": {"privacy": {"kind": "central", "epsilon": 8.0}}}, "it"
    ).federated
    longer = replace(private, rounds=40)
    wrong = falsifying(replace(config, federated=private), replace(config, federated=longer))
    assert "for which the noise was chosen" in wrong["federated.rounds"]


def test_fewer_rounds_than_have_been_played(copy) -> None:
    folder, config, _ = copy
    fewer = replace(config, federated=replace(config.federated, rounds=2))
    with pytest.raises(UsageError, match=r"rounds = 2, but the checkpoint of .* is after round 3"):
        play(fewer, 2, str(folder.path))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from fedmpi.data import files
from fedmpi.federated import tensor_file
from fedmpi.federated.checkpoint_file import About, Checkpoint, write_checkpoint

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "rename":
    os.replace = die
else:
    tensor_file.dtype_name = die  # after the first tensor
state = {"model/0": torch.ones(100_000), "model/1": torch.ones(100_000)}
write_checkpoint(Path(sys.argv[1]), Checkpoint(About(9, "", ""), state))
"""


@pytest.mark.parametrize("when", ["rename", "tensor"])
def test_killed_while_it_writes(when: str, tmp_path: Path) -> None:
    """Nothing has the name of a checkpoint, and the next that is written clears up."""
    path = tmp_path / "round-000009.h5"
    command = [sys.executable, "-c", KILLED, str(path), when]
    done = subprocess.run(command, timeout=120, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert rounds_in(tmp_path) == []
    assert [file.name.startswith(".round-000009.h5.tmp-") for file in tmp_path.iterdir()] == [True]
    remove(tmp_path, lambda number: False)
    assert list(tmp_path.iterdir()) == []


ENDS: dict[str, dict[str, Any]] = {
    "the privacy budget": {
        "privacy": PrivacyConfig(kind="central", noise_multiplier=1.0, epsilon=14.0)
    },
    "target_accuracy": {"target_accuracy": 0.15},
}


@pytest.mark.parametrize("why", ENDS)
def test_a_run_that_left_after_its_last_round_plays_no_more(why: str, tmp_path: Path) -> None:
    """It was killed, or left by a signal, between the last checkpoint and its model."""
    config = job(tmp_path, "clear")
    config = replace(config, federated=replace(config.federated, **ENDS[why]))
    folder, _ = play(config, 2)
    expected, lines = bits(folder), records(folder.metrics)
    assert len(lines) < 4
    as_killed_after(folder, 4)
    play(resumed(config), 2, str(folder.path))
    assert records(folder.metrics) == lines
    assert bits(folder) == expected
    assert read_outcome(folder.outcome) == RunOutcome(0, len(lines))


@pytest.mark.parametrize("kind", ["scaffold", "free riders", "fedadam"])
def test_a_round_given_up_while_it_is_evaluated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients have trained, and what they remember is that of this round already."""
    config = replace(job(tmp_path, kind), checkpoint=CheckpointConfig(every_minutes=60.0, keep=4))
    expected = bits(play(replace(config, name="whole"), 2)[0])
    evaluate, rounds = job_module.evaluate, iter(range(1, 5))

    def interrupted(*arguments: Any) -> Any:
        if next(rounds) == 3:
            raise Interrupted("SIGUSR1")
        return evaluate(*arguments)

    monkeypatch.setattr(job_module, "evaluate", interrupted)
    with pytest.raises(Suspended):
        play(config, 2)
    monkeypatch.setattr(job_module, "evaluate", evaluate)
    folder = RunFolder(Path(config.out) / "it")
    assert rounds_in(folder.checkpoints) == ([2] if kind == "fedadam" else [])
    play(resumed(config), 2, str(folder.path))
    assert bits(folder) == expected


def test_clients_that_died_with_a_worker_stay_away(tmp_path: Path) -> None:
    """Another model would be neither that of the survivors nor that of all clients."""
    config = job(tmp_path, "clear")
    folder, _ = play(config, 2)
    as_killed_after(folder, 2)
    path = folder.checkpoints / "round-000002.h5"
    found = read_checkpoint(path)
    assert found.about.gone == []
    about = replace(found.about, gone=[0, 3, 5, 7])
    write_checkpoint(path, Checkpoint(about, found.state))
    _, said = play(resumed(config), 2, str(folder.path))
    assert "going on without 4 clients that had died with a worker\n" in said
    assert read_checkpoint(folder.checkpoints / "round-000004.h5").about.gone == [0, 3, 5, 7]
    assert {line["clients"] for line in records(folder.metrics)[2:]} == {6}


@pytest.mark.parametrize("unread", ["checkpoint", "clients' file", "clients"])
def test_a_whole_checkpoint_that_cannot_be_read_is_not_given_up(
    unread: str, copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the wrong permissions, or on a node that does not see the folder."""
    folder, config, _ = copy
    newest = folder.checkpoints / "round-000003.h5"
    if unread != "clients":
        name = newest.name if unread == "checkpoint" else "round-000003.clients-2.h5"
        (folder.checkpoints / name).unlink()
        (folder.checkpoints / name).mkdir()  # cannot be read, by root neither
        sentence = rf"cannot read .*{name}: Is a directory; mend that and resume again"
    else:

        def away(path: Path, *_: Any) -> Any:
            raise DataError(f"cannot read {path}: Permission denied")

        monkeypatch.setattr(client_memory, "open_checked", away)
        sentence = r"round-000003.h5 is whole, but .*Permission denied; mend that and resume again"
    with pytest.raises(DataError, match=sentence):
        play(config, 2, str(folder.path))
    assert not list(folder.checkpoints.glob("*.damaged"))


def test_code_that_leaves_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status would be 0, and the job one that has ended well."""

    def leaving(*arguments: Any) -> Any:
        sys.exit()

    monkeypatch.setattr(job_module, "evaluate", leaving)
    config = job(tmp_path, "clear")
    with pytest.raises(FedMPIError, match=r"called sys.exit\(None\), 0 of 4 rounds have ended"):
        play(config, 2)
    outcome = read_outcome(RunFolder(Path(config.out) / "it").outcome)
    assert outcome is not None
    assert outcome.exit_status == 1
