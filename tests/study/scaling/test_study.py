from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmpi.config import to_toml
from fedmpi.errors import UsageError
from fedmpi.study.scaling.study import Study, StudyFolder, check
from tests.study.scaling.conftest import CONFIG

STUDY = Study("weak", (1, 2, 4), 3, 2, 1, 30, ("--partition=short", "--mem=4G"))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.save(STUDY)
    folder.config.write_text(to_toml(CONFIG))
    assert folder.load() == (STUDY, CONFIG)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "storng"}, "did you mean 'strong'"),
        ({"workers": ()}, "workers = ()"),
        ({"workers": (2, 1)}, "workers = (2, 1)"),
        ({"workers": (0, 1)}, "workers = (0, 1)"),
        ({"repeats": 0}, "repeats = 0"),
        ({"ranks_per_node": 0}, "ranks_per_node = 0"),
        ({"cores_per_rank": 0}, "cores_per_rank = 0"),
        ({"minutes": 0}, "minutes = 0"),
        ({"sbatch": ("partition=short",)}, "sbatch = 'partition=short'"),
        ({"sbatch": ("--mem=1\nrm -rf x",)}, "sbatch"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(STUDY, **changes)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("branch", "changes", "told"),
    [
        ("data", {"path": "data/mine"}, "name a source"),
        ("data", {"clients": 9}, "data.clients = 9 for 4 workers"),
        ("federated", {"rounds": 1}, "at least 2"),
        ("federated", {"target_accuracy": 0.9}, "leave it out"),
    ],
)
def test_a_job_that_cannot_be_measured(branch: str, changes: dict[str, Any], told: str) -> None:
    config = replace(CONFIG, **{branch: replace(getattr(CONFIG, branch), **changes)})
    with pytest.raises(UsageError) as caught:
        check(STUDY, config)
    assert told in str(caught.value)


def test_more_workers_than_clients() -> None:
    with pytest.raises(UsageError, match="a worker needs a client"):
        check(replace(STUDY, kind="strong", workers=(9,)), CONFIG)


def test_clients_of_a_point() -> None:
    assert [STUDY.clients(w, CONFIG) for w in STUDY.workers] == [2, 4, 8]
    assert replace(STUDY, kind="strong").clients(1, CONFIG) == 8


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write"):
        StudyFolder(tmp_path).load()


@pytest.mark.parametrize("text", ["kind = 3", "kind =", 'kind = "strong"\nworkers = [2, 1]'])
def test_a_damaged_study(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(UsageError):
        StudyFolder(tmp_path).load()
