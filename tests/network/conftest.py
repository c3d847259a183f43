"""Clusters of network namespaces, where this machine and this person can make any."""

from __future__ import annotations

import pytest

from jobs.cluster import missing


@pytest.fixture(autouse=True, scope="session")
def namespaces() -> None:
    if why := missing(delay=1.0):
        pytest.skip(f"no cluster of network namespaces here: {why}")
