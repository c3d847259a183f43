"""Homomorphic aggregation: sums and whole jobs, what the owner sees, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from fedmpi.comm.endpoint import Channel, Endpoint
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.threads import ThreadTransport
from fedmpi.config import AggregationConfig, Config, FederatedConfig, Recipe, from_toml
from fedmpi.errors import RemoteError, UsageError
from fedmpi.federated.aggregation import Asked
from fedmpi.federated.ckks import Key, as_tensor, make_keys, serialised
from fedmpi.federated.ckks_parameters import Parameters
from fedmpi.federated.commands import SUM
from fedmpi.federated.encrypted_sum import BLOCK, Sent
from fedmpi.federated.homomorphic import Homomorphic
from fedmpi.workers.command import Command, handles
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from fedmpi.workers.vectors import Route
from fedmpi.workers.worker import Worker
from tests.comm.worlds import World
from tests.federated.lab import BAD, config_of, furthest, play, play_alone
from tests.launch import ROOT
from tests.spdz.transcripts import recorded

SLOTS = 2048
QUICK = {"poly_modulus_degree": 4096}


class FillSum(Command, frozen=True):
    """Hold a sum of values up to this size, or these same ones everywhere."""

    seed: int
    length: int
    largest: float


@handles(FillSum)
def fill(worker: Worker, command: FillSum, tensors: list[torch.Tensor]) -> None:
    worker.store[SUM] = vector_of(worker.rank, command.seed, command.length, command.largest)


def vector_of(rank: int, seed: int, length: int, largest: float) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(100 * seed + rank)
    values = torch.rand(length, generator=drawn, dtype=torch.float64) * 2 - 1
    values[::7] = 1.0
    return (values * largest * 2.0**40).round().to(torch.int64)


def leader(crew: Crew, **how: Any) -> Homomorphic:
    secure = AggregationConfig(kind="ckks", **{**QUICK, **how})
    return Homomorphic(Config(federated=FederatedConfig(secure=secure)), crew)


def summed(
    lead: Homomorphic, number: int, length: int, largest: float, ranks: Sequence[int] = ()
) -> torch.Tensor:
    """A round's sum over the ranks, or all of them, of what `FillSum` makes them hold."""
    crew, ranks = lead.crew, list(ranks or lead.crew.ranks)
    for rank in ranks:
        crew.tell(rank, FillSum(number, length, largest))
    clients = list(range(1, 2 + len(ranks)))
    home = dict(zip(clients, [ranks[0], *ranks], strict=True))
    route = Route([0, *ranks], "tree", 1024)
    lead.ask(Asked(number, clients, home, ranks, route, length))
    lead.receive(torch.empty(0), 0.0)
    crew.busy = False  # as when the reports have been heard
    return lead.total([], clients)


def exact(ranks: Sequence[int], number: int, length: int, largest: float) -> torch.Tensor:
    return (
        torch.stack([vector_of(r, number, length, largest) for r in ranks]).sum(0).double()
        * 2.0**-40
    )


# ---- sums ----


def test_sums_are_within_the_bound_in_every_world(world: World) -> None:
    """Of every length around a ciphertext's and a block's, by every kind of adder and holders."""

    def scenario(crew: Crew) -> None:
        n = len(crew.ranks)
        ways: list[dict[str, Any]] = [{}, {"key_holders": (n,)}, {"key_holders": tuple(crew.ranks)}]
        if n > 1:
            ways += [{"adder": 2}, {"adder": 1, "key_holders": tuple(range(2, n + 1))}]
        for way in ways:
            lead = leader(crew, **way)
            lengths = (1, SLOTS - 1, SLOTS, SLOTS + 1, BLOCK * SLOTS, 2 * BLOCK * SLOTS + 1)
            for number, length in enumerate(lengths if way == ways[-1] else (1, SLOTS + 1), 1):
                error = summed(lead, number, length, 0.01) - exact(crew.ranks, number, length, 0.01)
                assert float(error.abs().max()) <= lead.parameters.error_bound(n, 0.01)

    world.lead(scenario)


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_the_largest_values_and_one_beyond(workers: int) -> None:
    with in_process_crew(workers) as crew:
        lead = leader(crew)
        largest = lead.parameters.largest / workers
        error = summed(lead, 1, 999, largest) - exact(crew.ranks, 1, 999, largest)
        assert float(error.abs().max()) <= lead.parameters.error_bound(workers, largest)
    beyond = rf"worker on rank .: .* reaches {largest * 1.001:.6g}, .* at most {largest:.6g}: lower"
    with pytest.raises(RemoteError, match=beyond) as caught, in_process_crew(workers) as crew:
        summed(leader(crew), 1, 999, largest * 1.001)
    assert caught.value.exit_status == UsageError.exit_status


@pytest.mark.parametrize("scale_bits", [30, 50])
def test_other_scales(scale_bits: int) -> None:
    with in_process_crew(2) as crew:
        lead = leader(crew, scale_bits=scale_bits, poly_modulus_degree=8192)
        error = (summed(lead, 1, 5000, 0.01) - exact(crew.ranks, 1, 5000, 0.01)).abs().max()
        bound = Parameters(8192, scale_bits).error_bound(2, 0.01)
        assert bound / 10 < float(error) <= bound


@pytest.mark.parametrize("way", [{"adder": 3}, {"key_holders": (3, 2)}, {"key_holders": (4,)}])
def test_a_round_without_the_adder_or_the_key_holders(way: dict[str, Any]) -> None:
    """Their part is to add and decrypt, whether or not any client of theirs trains."""
    with in_process_crew(4) as crew:
        lead = leader(crew, **way)
        for number, ranks in enumerate(([1, 2], [2], [1, 2, 3, 4], [1]), 1):
            error = summed(lead, number, 3000, 1.0, ranks) - exact(ranks, number, 3000, 1.0)
            assert float(error.abs().max()) <= lead.parameters.error_bound(len(ranks), 1.0)


# ---- whole jobs ----


def test_a_job_is_close_to_the_one_in_the_clear_in_every_world(world: World, folder: Path) -> None:
    def scenario(crew: Crew) -> None:
        workers = len(crew.ranks)
        # One round: in a second one an activation that lies within the error of 0 may change sides.
        clear = config_of(folder, workers, rounds=1)
        expected = play_alone(clear, workers)
        ways: list[dict[str, Any]] = [{}]
        if workers > 1:
            ways.append({"key_holders": tuple(range(2, workers + 1)), "adder": 1})
        for way in ways:
            secure = AggregationConfig(kind="ckks", **way)
            config = replace(clear, federated=replace(clear.federated, secure=secure))
            played = play(config, crew)
            assert 0 < furthest(played.model, expected.model) < 1e-6
            found = [(m.clients, m.examples, m.test_metric) for m in played.rounds]
            assert found == [(m.clients, m.examples, m.test_metric) for m in expected.rounds]

    world.lead(scenario)


def test_the_job_to_copy_can_be_read() -> None:
    config = from_toml(ROOT / "jobs" / "homomorphic.toml")
    assert config.federated.secure.kind == "ckks"
    assert len(config.federated.secure.key_holders) == 2


@pytest.mark.parametrize("model", ["mixed", "batch_norm"])
def test_counters_and_other_dtypes(tmp_path: Path, model: str) -> None:
    factory = f"tests.federated.factories:{model}"
    clear = config_of(tmp_path, 2, model=factory, batch_size=9, rounds=1)
    secure = AggregationConfig(kind="ckks", **QUICK)
    config = replace(clear, federated=replace(clear.federated, secure=secure))
    played, expected = play_alone(config, 2), play_alone(clear, 2)
    assert furthest(played.model, expected.model) < (1e-2 if model == "mixed" else 1e-5)


def test_a_client_that_is_left_out(tmp_path: Path, spoiled: Recipe) -> None:
    """As in the clear: its worker leaves it out of what it encrypts."""
    clear = config_of(tmp_path, 3, spoiled, fraction=1.0, mode="scatter", rounds=1)
    secure = AggregationConfig(kind="ckks", **QUICK)
    config = replace(clear, federated=replace(clear.federated, secure=secure))
    played, expected = play_alone(config, 3), play_alone(clear, 3)
    assert [[e.client for e in m.excluded] for m in played.rounds] == [[BAD]]
    assert [m.excluded for m in played.rounds] == [m.excluded for m in expected.rounds]
    assert furthest(played.model, expected.model) < 1e-6


# ---- what the owner sees ----


def test_the_owner_gets_ciphertexts_and_the_sum_and_nothing_else() -> None:
    parameters = Parameters(4096, 44)
    ways: list[dict[str, Any]] = [{}, {"adder": 2}, {"key_holders": (1, 3)}]
    for way in ways:
        with buffers() as raw, recorded() as frames, in_process_crew(3) as crew:
            lead = leader(crew, **way)
            total = summed(lead, 1, 3 * SLOTS, 0.5)
        to_owner = [frame for frame in frames if frame.to == 0]
        assert not any(destination == 0 and tag == Channel.COLLECTIVE for destination, tag in raw)
        assert {f.channel for f in to_owner} == {Channel.PEER, Channel.REPLY}
        assert all(not f.tensors for f in to_owner if f.channel == Channel.REPLY)
        told = [f for f in to_owner if f.channel == Channel.PEER]
        said = [message.what for f in told if isinstance(message := f.message, Sent)]
        sees = ["ciphertexts"] * 3 if way.get("adder", 0) == 0 else []
        assert sorted(said) == sorted([*sees, "public key", "values"])
        [values] = next(f.tensors for f in told if said_by(f.message) == "values")
        assert torch.equal(values, total)
        # Nothing of it decrypts: the owner has no secret key and no piece of one.
        for frame in told:
            for tensor in frame.tensors:
                with pytest.raises(ProtocolError):
                    Key(parameters, tensor, 1, secret=True)
        # And no tensor has a worker's own values.
        for rank in crew.ranks:
            own = vector_of(rank, 1, 3 * SLOTS, 0.5).double() * 2.0**-40
            assert float((values - own).abs().mean()) > 0.1


def test_the_adder_gets_no_key_and_a_key_holder_no_single_ciphertext() -> None:
    with recorded() as frames, in_process_crew(4) as crew:
        summed(leader(crew, adder=2, key_holders=(3, 4)), 1, SLOTS, 0.5)
    to_adder = {said_by(f.message) for f in frames if f.to == 2 and f.channel == Channel.PEER}
    assert to_adder == {"public key", "ciphertexts"}
    to_holder = {said_by(f.message) for f in frames if f.to == 3 and f.channel == Channel.PEER}
    assert to_holder == {"piece of the key", "sum"}
    to_other = {said_by(f.message) for f in frames if f.to == 4 and f.channel == Channel.PEER}
    assert to_other == {"public key", "piece of the key"}


def test_pieces_do_not_stay_where_they_were_put_together() -> None:
    with recorded() as frames, in_process_crew(3) as crew:
        lead = leader(crew, key_holders=(1, 2, 3))
        summed(lead, 1, 9, 0.5)
        summed(lead, 2, 9, 0.5)
    pieces = [f for f in frames if said_by(f.message) == "piece of the key"]
    # At the start from where the key was made, then in every round to where it is used.
    assert [(f.source, f.to) for f in pieces[:2]] == [(1, 2), (1, 3)]
    assert sorted((f.source, f.to) for f in pieces[2:]) == [(2, 1), (2, 1), (3, 1), (3, 1)]


def said_by(message: msgspec.Struct) -> str:
    return message.what if isinstance(message, Sent) else ""


@contextmanager
def buffers() -> Iterator[list[tuple[int, int]]]:
    """Destination and tag of all that threads send without a header."""
    found: list[tuple[int, int]] = []
    send = ThreadTransport.send_buffer

    def keep(self: ThreadTransport, buffer: torch.Tensor, destination: int, tag: int) -> Any:
        found.append((destination, tag))
        return send(self, buffer, destination, tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadTransport, "send_buffer", keep)
        yield found


# ---- what others send ----

Change = Callable[[Sent, list[torch.Tensor]], tuple[Sent, list[torch.Tensor]]]


@contextmanager
def changed(source: int, what: str, change: Change) -> Iterator[None]:
    """A rank sends something else than it should."""
    send = Endpoint.send

    def other(
        self: Endpoint, to: int, channel: Channel, message: Any, tensors: Any = (), *rest: Any
    ) -> None:
        if self.rank == source and isinstance(message, Sent) and message.what == what:
            message, tensors = change(message, list(tensors))
        send(self, to, channel, message, tensors, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "send", other)
        yield


def flipped(data: torch.Tensor, place: int) -> torch.Tensor:
    other = data.clone()
    other[place] ^= 0x55
    return other


CHANGES: dict[str, tuple[str, Change, str]] = {
    "cut": ("ciphertexts", lambda s, t: (s, [t[0][:-99], *t[1:]]), "sent no CKKS ciphertext"),
    "header": ("ciphertexts", lambda s, t: (s, [flipped(t[0], 8), *t[1:]]), "sent no CKKS cipher"),
    "fewer": (
        "ciphertexts",
        lambda s, t: (s, t[1:]),
        r"sent ciphertexts \(1\) of round 1, bl",
    ),
    "long": (
        "ciphertexts",
        lambda s, t: (s, [torch.zeros(10**6, dtype=torch.uint8)] * 2),
        r"sent torch.uint8 \[1000000\] as a ciphertext",
    ),
    "round": (
        "ciphertexts",
        lambda s, t: (replaced(s, round=7), t),
        r"sent ciphertexts \(2\) of round 7, block 0 instead of ciphertexts \(2\) of round 1",
    ),
    "block": (
        "ciphertexts",
        lambda s, t: (replaced(s, block=1), t),
        ".* round 1, block 1 instead",
    ),
    "kind": ("ciphertexts", lambda s, t: (replaced(s, what="sum"), t), r"sent sum \(2\) of round"),
}


def replaced(sent: Sent, **what: Any) -> Sent:
    return msgspec.structs.replace(sent, **what)


@pytest.mark.parametrize("adder", [0, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_worker_must_not_send(name: str, adder: int) -> None:
    what, change, said = CHANGES[name]
    told = f"rank 2 {said}" if adder == 0 else f"worker on rank 3: rank 2 {said}"
    kind = ProtocolError if adder == 0 else RemoteError
    with (
        changed(2, what, change),
        pytest.raises(kind, match=told),
        in_process_crew(3) as crew,
    ):
        summed(leader(crew, adder=adder), 1, 2 * SLOTS, 0.5)


def test_a_ciphertext_under_another_key_is_found_by_what_it_decrypts_to() -> None:
    parameters = Parameters(4096, 44)
    stranger = Key(parameters, as_tensor(make_keys(parameters)[0]), 2)
    zeros = torch.zeros(SLOTS, dtype=torch.float64)

    def swapped(sent: Sent, tensors: list[torch.Tensor]) -> tuple[Sent, list[torch.Tensor]]:
        return sent, [serialised(stranger.encrypt(zeros)) for _ in tensors]

    with (
        changed(2, "ciphertexts", swapped),
        pytest.raises(RemoteError, match=r"worker on rank 1: the encrypted sum decrypts to .* key"),
        in_process_crew(3) as crew,
    ):
        summed(leader(crew), 1, 2 * SLOTS, 0.5)


@pytest.mark.parametrize("cut", [0, 1, 5000])
def test_a_public_key_that_is_none(cut: int) -> None:
    with (
        changed(1, "public key", lambda s, t: (s, [t[0][:cut]])),
        pytest.raises((ProtocolError, RemoteError), match="rank 1 sent no usable CKKS key"),
        in_process_crew(3) as crew,
    ):
        leader(crew)


def test_pieces_that_make_no_key() -> None:
    for change, said in (
        (lambda s, t: (s, [t[0].flip(0)]), "the pieces of the key from ranks 1, 3 make no key"),
        (lambda s, t: (s, [t[0][:-1]]), "rank 3 sent torch.uint8 .* as its piece of the key"),
    ):
        with (
            changed(3, "piece of the key", change),
            pytest.raises(RemoteError, match=f"worker on rank 1: {said}"),
            in_process_crew(3) as crew,
        ):
            summed(leader(crew, key_holders=(1, 3)), 1, 9, 0.5)


@pytest.mark.parametrize("tensor", [torch.zeros(7), torch.zeros(8, dtype=torch.float64)], ids=str)
def test_values_that_are_not_the_sum(tensor: torch.Tensor) -> None:
    with (
        changed(1, "values", lambda s, t: (s, [tensor])),
        pytest.raises(ProtocolError, match=r"rank 1 sent torch\.float.* as 7 values of the sum"),
        in_process_crew(2) as crew,
    ):
        summed(leader(crew), 1, 7, 0.5)


# ---- refusals ----


def test_ranks_that_are_no_workers_of_the_job(tmp_path: Path) -> None:
    for how, said in (
        ({"key_holders": (2, 4)}, r"secure\.key_holders names rank 4, .* are ranks 1 to 3"),
        ({"adder": 9}, r"secure\.adder names rank 9, .* are ranks 1 to 3"),
    ):
        secure = AggregationConfig(kind="ckks", **how)
        with pytest.raises(UsageError, match=said):
            play_alone(config_of(tmp_path, 3, secure=secure), 3)


def test_a_cohort_of_one_client(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3, fraction=0.01, secure=AggregationConfig(kind="ckks", **QUICK))
    with pytest.raises(UsageError, match="with a cohort of one client"):
        play_alone(config, 3)


def test_tenseal_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(UsageError, match=r"pip install 'fedmpi\[he\]'"):
        play_alone(config_of(tmp_path, 2, secure=AggregationConfig(kind="ckks")), 2)


def test_a_worker_without_keys_ends_the_job() -> None:
    """Nobody waits for it."""
    with in_process_crew(3) as crew:
        lead = leader(crew)

    def another_crew() -> None:
        with in_process_crew(3) as lead.crew:
            summed(lead, 1, 9, 0.5)

    with pytest.raises(RemoteError, match=r"worker on rank .: rank . holds no Keys"):
        another_crew()
