from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmpi.data.index import Index, check_workers, read_index
from fedmpi.errors import DataError, UsageError


def test_workers_must_fit() -> None:
    class Seven:
        shards = tuple(range(7))

    class One:
        shards = (0,)

    check_workers(Seven, "data/mnist5k", 7, launched=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        check_workers(Seven, "data/mnist5k", 4, launched=True)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "7 shards in data/mnist5k but 4 workers: run with mpirun -n 8, or prepare again with "
        "--workers 4"
    )
    with pytest.raises(UsageError) as caught:
        check_workers(One, "d", 2, launched=False)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "1 shard in d but 2 workers: run with mpirun -n 2 or --workers 1, or prepare again with "
        "--workers 2"
    )


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index.json, so it is no prepared dataset"):
        read_index(tmp_path)


def test_truncated_index(prepared: tuple[Path, Index]) -> None:
    path = prepared[0] / "index.json"
    text = path.read_bytes()
    for length in range(0, len(text) - 2, 50):
        path.write_bytes(text[:length])
        with pytest.raises(DataError, match=r"index.json is damaged"):
            read_index(prepared[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "fedmpi-other"}, "expected the format 'fedmpi-index', found 'fedmpi-other'"),
        ({"version": 2}, "expected version 1 or older, found version 2; read it with"),
        ({"version": "1"}, r"damaged: Expected `int`, got `str` - at `\$.version`"),
        ({"version": 2, "created_by": "\x1b[2J"}, r"that wrote it \('\\x1b\[2J'\)"),
        ({"source": "\x1b[2J"}, "damaged: it names the source"),
        ({"dtype": "\x1b[2J"}, "damaged: rows"),
        ({"task": "\x1b[2J"}, "damaged: Invalid enum value"),
        ({"test": {"file": "\x1b[2J", "rows": 0, "sha256": ""}}, "is not a file's name"),
        ({"classes": -1}, "damaged: classification with -1 classes"),
        ({"task": "regression"}, "damaged: regression with 5 classes"),
        ({"task": "ranking"}, "damaged: Invalid enum value 'ranking'"),
        ({"dtype": "object"}, "damaged: rows 'object'"),
        ({"row_shape": []}, "damaged: rows 'float32'"),
        ({"row_shape": [3, -1]}, "damaged: rows 'float32'"),
        ({"row_shape": [1] * 32}, "damaged: rows 'float32'"),
        ({"row_shape": [3, 2**30]}, "at most 2,147,483,648 values"),
        ({"classes": 201}, "damaged: classification with 201 classes in 200 rows"),
        ({"classes": 2**62}, "damaged: classification with 46"),
        ({"shards": []}, "damaged: it lists no shards"),
        (
            {"shards": [{"file": "shard-0001.h5", "rows": 160, "clients": 161, "sha256": ""}]},
            "shard-0001.h5 has 161 clients with 160 rows",
        ),
        ({"normalisation": {"mean": [1, 2], "std": [1, 2]}}, "its normalisation has 2 means"),
        ({"normalisation": {"std": [0.0]}}, "a deviation of 0"),
        ({"recipe": {"clients": 0}}, "damaged: clients = 0"),
        ({"test": {"file": "../test.h5", "rows": 1, "sha256": ""}}, "is not a file's name"),
        ({"test": {"file": "/etc/passwd", "rows": 1, "sha256": ""}}, "is not a file's name"),
        ({"test": {"file": "test.h5", "rows": 0, "sha256": ""}}, "test.h5 has 0 rows"),
    ],
)
def test_damaged_index(prepared: tuple[Path, Index], changes: dict[str, Any], message: str) -> None:
    path = prepared[0] / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=message) as refused:
        read_index(prepared[0])
    assert str(refused.value).isprintable()


def test_index_of_text_that_is_not_json(prepared: tuple[Path, Index]) -> None:
    for text in (b"\xff\xfe", b"[]", b"<html>"):
        (prepared[0] / "index.json").write_bytes(text)
        with pytest.raises(DataError, match="is damaged"):
            read_index(prepared[0])
