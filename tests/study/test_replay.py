"""The replay's owner is the real one: it sends what it sends in a real job, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.transport import Transport
from fedmpi.config import AggregationConfig, CommConfig, Config, Recipe
from fedmpi.errors import FedMPIError, UsageError
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.metrics import RoundMetrics
from fedmpi.study.played_workers import PlayedWorkers
from fedmpi.study.replay import ReplayTransport
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from tests.federated.lab import bits, config_of

WORKERS, CLIENTS, ROWS = 3, 4, 10
"""Even: the played workers' clients are all alike."""

Sent = tuple[int, int, bytes | int]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """Rows of which every client gets as many."""
    folder = tmp_path_factory.mktemp("even")
    rows = WORKERS * CLIENTS * ROWS
    draws = np.random.default_rng(0)
    x, y = draws.random((rows + 30, 8, 8), dtype=np.float32), np.arange(rows + 30) % 10
    np.savez(folder / "even.npz", x=x[:rows], y=y[:rows], x_test=x[rows:], y_test=y[rows:])
    return folder, Recipe(source=str(folder / "even.npz"), clients=WORKERS * CLIENTS)


def recorded(transport: Transport) -> list[Sent]:
    """What a rank sends from now on: its commands to the byte, of vectors the length."""
    sent: list[Sent] = []
    note, buffer = transport.send_note, transport.send_buffer

    def send_note(data: bytes, destination: int, tag: int) -> Any:
        if tag == Channel.COMMAND:
            sent.append((destination, tag, data))
        return note(data, destination, tag)

    def send_buffer(data: torch.Tensor, destination: int, tag: int) -> Any:
        sent.append((destination, tag, data.numel()))
        return buffer(data, destination, tag)

    transport.send_note, transport.send_buffer = send_note, send_buffer  # type: ignore[method-assign]
    return sent


def run(config: Config, crew: Crew) -> tuple[Job, list[RoundMetrics], list[Sent]]:
    sent = recorded(crew.endpoint.transport)
    job = Job(config, crew)
    rounds: list[RoundMetrics] = []
    job.run(Observer(rounds.append, lambda clients: None))
    return job, rounds, list(sent)


def replayed(config: Config) -> Crew:
    workers = PlayedWorkers(config, CLIENTS, ROWS)
    return Crew(Endpoint(ReplayTransport(workers, WORKERS + 1)))


@pytest.mark.parametrize("topology", ["tree", "star"])
@pytest.mark.parametrize("kind", ["none", "shares"])
def test_the_owner_sends_what_it_sends_in_a_real_job(
    even: tuple[Path, Recipe], topology: Any, kind: Any
) -> None:
    config = config_of(
        even[0],
        WORKERS,
        even[1],
        comm=CommConfig(topology=topology, chunk_kib=4, balance="on"),
        secure=AggregationConfig(kind=kind),
    )
    with in_process_crew(WORKERS) as crew:
        _, real_rounds, real = run(config, crew)
    crew = replayed(config)
    first = bits(Job(config, crew).model)
    job, rounds, played = run(config, replayed(config))
    assert len(real) > 20
    assert played == real
    assert [(m.round, m.clients, m.examples) for m in rounds] == [
        (m.round, m.clients, m.examples) for m in real_rounds
    ]
    # Updates are zero; masks that the owner did not remove would be anything but.
    assert bits(job.model) == first


def test_what_a_played_worker_does_not_obey_is_refused(even: tuple[Path, Recipe]) -> None:
    config = config_of(even[0], WORKERS, even[1], evaluate_clients=True)
    with pytest.raises(UsageError, match="plays no workers that obey EvaluateClients"):
        run(config, replayed(config))


def test_an_answer_that_nobody_gives_is_not_waited_for(even: tuple[Path, Recipe]) -> None:
    config = config_of(even[0], WORKERS, even[1])
    with pytest.raises(FedMPIError, match="waits for what no played worker sends"):
        replayed(config).endpoint.receive(Channel.REPLY, 1)


def test_the_workers_time_is_not_the_owners(even: tuple[Path, Recipe]) -> None:
    config = config_of(even[0], WORKERS, even[1])
    crew = replayed(replace(config, seed=1))
    run(config, crew)
    transport = crew.endpoint.transport
    assert isinstance(transport, ReplayTransport)
    assert transport.played_seconds > 0
    assert transport.messages_sent > 0
