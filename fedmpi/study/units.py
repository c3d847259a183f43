"""Numbers as a person reads them."""

from __future__ import annotations


def size(n_bytes: float) -> str:
    """Bytes in decimal units: `5.6 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as `12 ms`, `1.24 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 99.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


def score(metric: str, value: float | None) -> str:
    """A test metric: accuracy in percent, R2 as it is, `-` in a round without evaluation."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.3f}"
