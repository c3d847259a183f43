from dataclasses import replace
from pathlib import Path

import pytest

from fedmpi.data.index import read_index
from fedmpi.errors import DataError
from fedmpi.study.scaling.shards import prepare_points
from fedmpi.study.scaling.study import Study, StudyFolder
from tests.federated.lab import bits, play_alone
from tests.study.scaling.conftest import CONFIG


def test_strong_spreads_the_same_clients(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    prepare_points(Study("strong", (1, 2)), CONFIG.data, folder)
    one, two = (read_index(folder.shards(w)) for w in (1, 2))
    assert [len(one.shards), len(two.shards)] == [1, 2]
    assert one.clients == two.clients == 8
    assert one.rows == two.rows


def test_weak_gives_each_worker_the_same(tmp_path: Path) -> None:
    """The points train, too: shards and index agree on what they are."""
    folder = StudyFolder(tmp_path)
    prepare_points(Study("weak", (1, 2, 4)), CONFIG.data, folder)
    whole = read_index(folder.shards(4))
    for workers in (1, 2):
        part = read_index(folder.shards(workers))
        assert [s.rows for s in part.shards] == [s.rows for s in whole.shards[:workers]]
        assert part.clients == part.recipe.clients == 2 * workers
        data = replace(CONFIG.data, clients=2 * workers, path=str(folder.shards(workers)))
        federated = replace(CONFIG.federated, fraction=1.0, rounds=1)
        played = play_alone(replace(CONFIG, data=data, federated=federated), workers)
        assert played.rounds[0].clients == 2 * workers
        assert bits(played.model)


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.shards(1).mkdir(parents=True)
    with pytest.raises(DataError, match="w0001"):
        prepare_points(Study("weak", (1, 2)), CONFIG.data, folder)
