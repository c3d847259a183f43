"""What secure computation sends, by operator: counted where it is sent, added up by the owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fedmpi.errors import RemoteError
from fedmpi.spdz.member import Count, member
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.command import Command, Reply, handles
from fedmpi.workers.worker import Worker


class TellTraffic(Command, frozen=True):
    """Say what you have sent as a party of this group."""

    group: int


class TrafficTold(Reply, frozen=True):
    """By operator, since the party has joined."""

    counts: dict[str, Count]


@dataclass(frozen=True)
class Traffic:
    """What all calls of one operator have sent.

    Attributes:
        operator: its name; in a table's last line "all".
        calls: by each member of the group.
        openings: one after another: each costs a message's latency, however many parties.
        party_bytes: from party to party, all parties together.
        dealer_bytes: from the dealer, to the last party.
    """

    operator: str
    calls: int
    openings: int
    party_bytes: int
    dealer_bytes: int


@handles(TellTraffic, replies=True)
def tell_traffic(worker: Worker, command: TellTraffic, tensors: list[torch.Tensor]) -> TrafficTold:
    """Counting goes on."""
    return TrafficTold(member(command.group).counts)


def traffic(*workers: RemoteWorker) -> list[Traffic]:
    """What the secure computations of these parties have sent so far, most bytes first.

    Waits for the parties. Counted is what operators exchange; shares of a worker's own data,
    public tensors, commands and what is revealed are not.

    Args:
        workers: the parties, in the order in which something was shared among them.

    Raises:
        UsageError: fewer than two parties.
        RemoteError: a party has failed.
    """
    from fedmpi.spdz.group import group_of_workers

    group = group_of_workers(workers)
    for link in group.links:
        link.tell(TellTraffic(group.number))
    told: list[dict[str, Count]] = []
    failure: RemoteError | None = None
    for link in group.links:
        try:
            told.append(link.hear(TrafficTold)[0].counts)
        except RemoteError as error:  # the others' answers must not wait for another question
            failure = failure or error
    if failure is not None:
        raise failure
    dealt = group.dealer.counts
    found = [
        Traffic(
            name,
            max(counts[name].calls for counts in (*told, dealt) if name in counts),
            max((counts[name].openings for counts in told if name in counts), default=0),
            sum(counts[name].nbytes for counts in told if name in counts),
            dealt[name].nbytes if name in dealt else 0,
        )
        for name in {*dealt, *(name for counts in told for name in counts)}
    ]
    return sorted(found, key=lambda t: (-t.party_bytes - t.dealer_bytes, t.operator))


def since(before: Iterable[Traffic], now: Iterable[Traffic]) -> list[Traffic]:
    """What was added to earlier counts; operators that were not called are left out."""
    known = {t.operator: t for t in before}
    nothing = Traffic("", 0, 0, 0, 0)
    added = [
        Traffic(
            t.operator,
            t.calls - known.get(t.operator, nothing).calls,
            t.openings - known.get(t.operator, nothing).openings,
            t.party_bytes - known.get(t.operator, nothing).party_bytes,
            t.dealer_bytes - known.get(t.operator, nothing).dealer_bytes,
        )
        for t in now
    ]
    return [t for t in added if t.calls]


def total(parts: Iterable[Traffic], name: str) -> Traffic:
    """Their sum, under a name."""
    parts = list(parts)
    return Traffic(
        name,
        sum(t.calls for t in parts),
        sum(t.openings for t in parts),
        sum(t.party_bytes for t in parts),
        sum(t.dealer_bytes for t in parts),
    )
