import pytest

from fedmpi.study.units import duration, score, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (5_600_000, "5.6 MB"),
        (999_600, "1 MB"),
        (123_456_789, "123 MB"),
        (25.3e9, "25.3 GB"),
        (2.5e15, "2,500.0 TB"),
    ],
)
def test_size(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (1.24, "1.24 s"),
        (99.996, "1 min 40 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_score() -> None:
    assert score("accuracy", 0.9123) == "91.2 %"
    assert score("r2", -0.25) == "-0.250"
    assert score("accuracy", None) == "-"
    assert score("r2", float("nan")) == "nan"
