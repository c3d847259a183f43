"""The benchmark against the peers: its data, its statistics and tables, and two of its systems."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jobs import bench_peers
from jobs.peers.federated import environments, report, summary, watch
from jobs.peers.federated.systems import (
    NotMeasured,
    Setting,
    last_words,
    of_run_folder,
    of_stdout,
)
from jobs.peers.federated.workloads import (
    WORKLOADS,
    Clients,
    cohort_of,
    read_idx,
    write_idx,
)

STDOUT = """size = 3
indexes of clients: [68 96 82]
{"peer": "fedml", "workload": "W1", "begun": 7.16, "rounds": [0.3, 0.2, 0.2], "accuracies": {"3": \
0.871}, "versions": {"fedml": "0.9.6", "torch": "2.13.0+cpu", "python": "3.11.7"}}
here
"""


def line(system: str, rounds: list[float], **other: Any) -> dict[str, Any]:
    return {
        "system": system, "workload": "W1", "begun": 2.0, "rounds": rounds, "total": 9.0,
        "accuracies": {"5": 0.5, "20": 0.95}, "versions": {"torch": "2.13.0"},
        "peak_mib": 900.0, "processes": 3, "others": 0.1,
        "circumstances": {"data": "MNIST"}, **other,
    }  # fmt: skip


RUNS = [
    line("fedmpi", [1.0, 0.1, 0.1, 0.1], circumstances={"data": "MNIST", "date": "2026-01-01"}),
    line("plain", [3.0, 0.2, 0.2, 0.2], begun=1.0),
    line("pfl", [0.5, 0.3, 0.4, 0.5], peak_mib=1800.0),
    line("pfl", [0.5, 0.3, 0.4, 0.5], peak_mib=2000.0),
    line("appfl", [2.0, 1.0, 1.0, 1.0], accuracies={"20": 0.9}),
    {"system": "flwr", "error": "ImportError: no ray", "circumstances": {}},
]


# ---- what is trained ----


def test_every_row_belongs_to_one_client(tmp_path: Path) -> None:
    x = np.arange(23 * 784, dtype=np.int64).astype(np.uint8).reshape(23, 28, 28)
    for stem in ("train", "t10k"):
        write_idx(tmp_path, f"{stem}-images-idx3-ubyte", x)
        write_idx(tmp_path, f"{stem}-labels-idx1-ubyte", np.arange(23))
    clients = Clients(tmp_path, 4)

    rows = [clients.load(client) for client in range(len(clients))]

    assert [clients.count(client) for client in range(4)] == [len(y) for _, y in rows]
    assert sorted(np.concatenate([y for _, y in rows])) == list(range(23))
    for pixels, labels in rows:
        np.testing.assert_array_equal(pixels * 255, x[labels].reshape(-1, 784))
    assert clients.load(2)[0] is rows[2][0], "kept"
    assert clients.held_out()[0].dtype == np.float32


def test_gzipped_files_are_read_as_plain_ones(tmp_path: Path) -> None:
    rows = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    write_idx(tmp_path, "plain", rows)
    (tmp_path / "packed.gz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))

    np.testing.assert_array_equal(read_idx(tmp_path, "plain"), rows)
    np.testing.assert_array_equal(read_idx(tmp_path, "packed"), rows)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_cohort_has_different_clients_and_is_drawn_alike_everywhere(name: str) -> None:
    work = WORKLOADS[name]
    cohorts = [cohort_of(number, work) for number in range(3)]
    assert cohorts == [cohort_of(number, work) for number in range(3)]
    for cohort in cohorts:
        assert len(set(cohort)) == work.cohort
        assert 0 <= min(cohort) <= max(cohort) < work.clients


# ---- what the runs come to ----


def test_the_first_round_is_in_the_start_up_alone() -> None:
    [systems] = summary.summarise(RUNS).values()

    assert list(systems) == ["fedmpi", "plain", "pfl", "appfl"], "the fastest first"
    assert systems["fedmpi"].quartiles == pytest.approx((0.1, 0.1, 0.1))
    assert systems["fedmpi"].startup == pytest.approx(2.0 + 1.0 - 0.1)
    pfl = systems["pfl"]
    assert pfl.quartiles == pytest.approx((0.325, 0.4, 0.475)), "of the rounds of both runs"
    assert (pfl.runs, pfl.peak_mib, pfl.accuracy) == (2, 1900.0, 0.95)
    assert summary.fastest_peer(systems) == pfl, "the plain loop is no peer"


def test_a_run_of_one_round_has_no_start_up_in_it() -> None:
    [systems] = summary.summarise([line("plain", [0.5])]).values()
    assert systems["plain"].quartiles == (0.5, 0.5, 0.5)
    assert systems["plain"].startup == pytest.approx(2.0)


def test_the_table_tells_ratios_other_accuracies_and_what_is_missing() -> None:
    table = report.markdown(RUNS)

    assert (
        "| fedmpi | 0.1000 (0.1000 to 0.1000) | 2.00 | 4.00 | 2.9 | 9.0 | 900 | 95.00% | 1 |"
        in table
    )
    assert "| appfl | 1.0000 (1.0000 to 1.0000) | 0.20 | 0.40 |" in table
    assert "90.00% (differs)" in table
    assert "- flwr: ImportError: no ray" in table
    assert table.startswith("data: MNIST; date: 2026-01-01\n")


def test_without_plain_loop_or_peers_there_are_no_ratios() -> None:
    [[name, _, plain, peer, *_]] = report.rows(summary.summarise(RUNS[:1])["W1"])
    assert (name, plain, peer) == ("fedmpi", "", "")


def test_a_failure_is_forgotten_once_the_system_runs() -> None:
    failed = {"system": "pfl", "workload": "W1", "error": "killed"}
    assert summary.not_measured([failed]) == {"pfl, W1": "killed"}
    assert summary.not_measured([failed, RUNS[2]]) == {}
    assert summary.not_measured([RUNS[-1], line("flwr", [1.0, 1.0])]) == {}


def test_results_are_written_and_drawn(tmp_path: Path) -> None:
    report.write(tmp_path, RUNS)

    results = json.loads((tmp_path / "results.json").read_text())
    own = results["workloads"]["W1"]["fedmpi"]
    assert own["as_fast_as_plain"] == 2.0
    assert own["as_fast_as_fastest_peer"] == 4.0
    assert results["not_measured"] == {"flwr": "ImportError: no ray"}
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    report.write(tmp_path, RUNS[-1:])  # nothing at all could be measured


def test_the_terminal_gets_the_same_cells() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.rich_table("W1", summary.summarise(RUNS)["W1"]))
    shown = console.export_text()
    assert "0.4000 (0.3250 to 0.4750)" in shown
    assert "100 clients, 10 a round" in shown


# ---- what a run leaves ----


def test_a_result_is_found_among_what_a_peer_prints() -> None:
    found = of_stdout(STDOUT)
    assert found["rounds"] == [0.3, 0.2, 0.2]
    assert found["versions"]["fedml"] == "0.9.6"
    with pytest.raises(NotMeasured, match="no result"):
        of_stdout("size = 3\n")


def test_the_reason_is_the_last_line_that_names_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback:\nImportError: no ray\n===== BAD TERMINATION =====\n\n")
    assert last_words(log) == "ImportError: no ray"
    log.write_text("Killed\n\n")
    assert last_words(log) == "Killed"
    log.write_text("")
    assert last_words(log) == "it said nothing"


def test_rounds_of_fedmpi_are_without_evaluation(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    lines = [
        {"round": 1, "seconds": 0.5, "phases": {"evaluate": 0.0}, "test_metric": None},
        {"round": 2, "seconds": 0.5, "phases": {"evaluate": 0.25}, "test_metric": 0.75},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(k) + "\n" for k in lines))
    written = (tmp_path / "config.toml").stat().st_mtime

    found = of_run_folder(tmp_path, written - 3.0)

    assert found["rounds"] == [0.5, 0.25]
    assert found["accuracies"] == {"2": 0.75}
    assert found["begun"] == pytest.approx(3.0)


GROWS = """
import os, sys, time
block = bytearray(os.urandom(1)) * (64 << 20)
if os.fork() == 0:
    os.setsid()          # as Ray's daemons leave their group
    own = bytearray(os.urandom(1)) * (64 << 20)
    time.sleep(60)
time.sleep(1.2)
print("done")
"""


def test_memory_of_all_processes_is_seen_and_none_is_left(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"

    watched = watch.run([sys.executable, "-c", GROWS], {}, tmp_path, out, log, limit=60)

    assert watched.status == 0
    assert out.read_text() == "done\n"
    assert watched.processes == 2
    assert 128 < watched.peak_mib < 170, "64 MiB that both share, 64 MiB of the child's"
    assert 1.2 < watched.total < 50, "the child that was left has been ended"


def test_a_run_ends_at_its_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    watched = watch.run(command, {}, tmp_path, tmp_path / "out", tmp_path / "log", limit=0.5)
    assert watched.status is None
    assert watched.total < 30


# ---- what cannot be ----


def test_an_environment_that_cannot_be_built_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing-1.0-py3-none-any.whl"
    monkeypatch.setattr(environments, "TORCH", str(missing))
    with pytest.raises(environments.NotBuilt, match=r"ERROR.*missing-1\.0"):
        environments.build(tmp_path, "pfl")
    assert not (tmp_path / "pfl" / "built.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeats", "-1"], "--repeats -1: expected at least 0"),
        (["--only", "pfl"], "name the folder of their environments with --peers"),
        (["--workloads", "W9"], "invalid choice: 'W9'"),
    ],
)
def test_mistakes_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_peers.main([*arguments, "--out", str(tmp_path)])
    assert said in capsys.readouterr().err


def test_runs_are_neither_overwritten_nor_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps(RUNS[0]) + "\n")
    with pytest.raises(SystemExit):
        bench_peers.main(["--out", str(tmp_path)])
    assert "--append to it, or name another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="data of the runs so far: MNIST, now: 5,000 digits"):
        bench_peers.main(["--out", str(tmp_path), "--append"])


def test_tables_are_made_again_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in RUNS))
    bench_peers.main(["--out", str(tmp_path), "--repeats", "0"])
    said = capsys.readouterr().out
    assert "0.4000 (0.3250 to 0.4750)" in said
    assert "flwr: not measured: ImportError: no ray" in said
    assert (tmp_path / "table.md").exists()


# ---- for real, as far as it needs no installing ----


@pytest.mark.launch
@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs mpirun on the PATH")
def test_fedmpi_and_the_plain_loop_train_the_same(tmp_path: Path) -> None:
    """The 5,000 digits, which is 4,000 rows of 1,000 clients and 1,000 to evaluate on."""
    chosen = bench_peers.parse(["--workloads", "W4", "--repeats", "1", "--out", str(tmp_path)])
    setting = Setting(peers=None, scratch=tmp_path, rounds=20, threads=1, limit=200)
    bench_peers.prepare("", chosen.workloads, setting)
    lines: list[dict[str, Any]] = []

    bench_peers.measure(chosen, setting, {"fedmpi", "plain"}, lines.append)

    assert not summary.not_measured(lines)
    found = summary.summarise(lines)["W4"]
    assert abs(found["fedmpi"].accuracy - found["plain"].accuracy) < 0.1
    assert found["plain"].accuracy > 0.3, "of ten digits"
    for run, own in zip(lines, found.values(), strict=True):
        assert len(run["rounds"]) == 20
        assert 0 < 20 * own.round < own.total
        assert 0 < own.startup < own.total
        assert 100 < own.peak_mib < 4000


@pytest.mark.launch
def test_a_system_that_fails_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    chosen = bench_peers.parse(["--workloads", "W4", "--repeats", "1", "--out", str(tmp_path)])
    chosen.only = ["pfl", "plain"]  # there is no environment for the one, no data for the other
    setting = Setting(peers=None, scratch=tmp_path, rounds=1, threads=1, limit=100)
    lines: list[dict[str, Any]] = []

    bench_peers.measure(chosen, setting, set(), lines.append)

    reasons = summary.not_measured(lines)
    assert list(reasons) == ["pfl", "plain"]
    assert "--peers" in reasons["pfl"]
    assert "train-images-idx3-ubyte.gz" in reasons["plain"]
