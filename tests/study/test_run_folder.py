import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpi.config import Config, DataConfig, from_toml
from fedmpi.errors import UsageError
from fedmpi.study.run_folder import RunFolder


def test_unnamed_runs_are_numbered_on(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path / "a" / "runs"))
    names = [RunFolder.create(config).path.name for _ in range(3)]
    assert names == ["2nn-mnist5k-001", "2nn-mnist5k-002", "2nn-mnist5k-003"]


def test_the_number_after_the_highest_is_next(tmp_path: Path) -> None:
    (tmp_path / "2nn-mnist5k-1041").mkdir()
    (tmp_path / "2nn-mnist5k-notes").mkdir()
    assert RunFolder.create(Config(out=str(tmp_path))).path.name == "2nn-mnist5k-1042"


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("own.nets:make", DataConfig(), "own.nets.make-mnist5k-001"),
        ("cnn", DataConfig(source="/scratch/my cells.h5"), "cnn-my.cells-001"),
        ("cnn", DataConfig(path="data/digits-8/"), "cnn-digits-8-001"),
    ],
)
def test_names_from_paths_and_factories(
    tmp_path: Path, model: str, data: DataConfig, name: str
) -> None:
    config = Config(out=str(tmp_path), model=model, data=data)
    assert RunFolder.create(config).path.name == name


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(config).path, range(32)))
    assert len(set(folders)) == 32


def test_config_is_written_whole_and_reads_back(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path), name="mine", seed=5)
    folder = RunFolder.create(config)
    # Without the name, which is taken now: the file can be run again as it is.
    assert from_toml(folder.config) == replace(config, name="")
    assert os.listdir(folder.path) == ["config.toml"]


def test_an_existing_name_is_refused(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path), name="mine")
    RunFolder.create(config)
    for refuse in (RunFolder.refuse_existing, RunFolder.create):
        with pytest.raises(UsageError, match="mine exists: choose another --name, or remove it"):
            refuse(config)
    RunFolder.refuse_existing(Config(out=str(tmp_path)))


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(UsageError, match=r"cannot make the run's folder .*file"):
            RunFolder.create(Config(out=str(tmp_path / out)))
    with pytest.raises(UsageError, match="File name too long"):
        RunFolder.create(Config(out=str(tmp_path), name="n" * 300))
