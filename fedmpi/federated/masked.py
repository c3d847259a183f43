"""Secure aggregation by shares: the owner sees the sum of the updates, and nothing else.

The owner's side of `masker`: it gets masked sums, hears who is lost, and asks the remaining
clients for what the masks are made of that have not cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from fedmpi.comm.frame import ProtocolError
from fedmpi.errors import FedMPIError
from fedmpi.federated.aggregation import Aggregation, Asked, receive_sum
from fedmpi.federated.commands import Reported
from fedmpi.federated.fixed_point import real
from fedmpi.federated.masker import unpacked
from fedmpi.federated.masking import MASKED, Agree, MaskSum, Unmask, Unmasked
from fedmpi.federated.masks import Mask, add_masks, pair_seed
from fedmpi.federated.neighbours import Neighbourhood, neighbourhood
from fedmpi.federated.shamir import SECRET_BYTES, SHARE_BYTES, rebuild
from fedmpi.workers.vectors import ReduceSum


class Masked(Aggregation):
    """Every worker sends the masked sum of its clients' updates; see `Aggregation`."""

    def prepare(self, asked: Asked) -> None:
        """Lets the workers deal seeds and shares."""
        self._agree(asked, 0)

    def ask(self, asked: Asked) -> None:
        """Asks for the masked sum."""
        self.asked = asked
        self.crew.tell_all(asked.ranks, MaskSum())
        self.crew.tell_all(asked.ranks, ReduceSum(MASKED, asked.route, asked.length))

    def receive(self, memory: torch.Tensor, expected: float) -> None:
        """Waits for it."""
        self._memory = memory
        super().receive(memory, expected)

    def total(self, reports: Sequence[Reported], included: Sequence[int]) -> torch.Tensor:
        """The sum over the included clients.

        Where too few of a client's neighbours are left to open its masks, the remaining clients
        agree on new ones and mask the same updates once more.

        Raises:
            FedMPIError: fewer than 2 clients are left.
            RemoteError, ProtocolError: a worker refuses to open masks, or its answer is wrong.
        """
        self.findings, self.traffic = {}, {}
        seconds = fmean(report.tally.mask_seconds for report in reports)
        lost = frozenset(self.asked.cohort) - set(included)
        self._refuse_single(len(included))
        if self._hood.short(self.asked.cohort, lost):
            self._repeat(included)
            lost = frozenset()
        payloads, late = self._open(lost)
        seconds += fmean(report.tally.mask_seconds for report in late)
        begun = time.perf_counter()
        total = self._total.cpu()
        masks = uncancelled(self._hood, payloads, lost)
        add_masks(total, [mask for of_client in masks.values() for mask in of_client])
        self.findings["mask_seconds"] = seconds + time.perf_counter() - begun
        return real(total)

    def _agree(self, asked: Asked, attempt: int) -> None:
        self.asked = asked
        self._refuse_single(len(asked.cohort))
        rank = {client: asked.rank[client] for client in asked.cohort}
        self._hood = neighbourhood(self.config, asked.number, attempt, rank)
        agree = Agree(asked.number, attempt, asked.cohort, list(rank.values()))
        self.crew.tell_all(asked.ranks, agree)

    def _repeat(self, remaining: Sequence[int]) -> None:
        """The same sum among the remaining clients alone; none of them drops out any more."""
        self.findings["repeated"] = 1
        asked = self.asked
        ranks = sorted({asked.rank[client] for client in remaining})
        route = asked.route.among(ranks)
        again = replace(asked, cohort=list(remaining), ranks=ranks, route=route)
        self._agree(again, self._hood.attempt + 1)
        self.ask(again)
        self._total = receive_sum(self.crew, route, asked.length, self._memory)

    def _open(self, lost: frozenset[int]) -> tuple[dict[int, bytes], list[Reported]]:
        """What each rank opens, and the ranks' reports since the last."""
        hood, ranks = self._hood, self.asked.ranks
        self.crew.tell_all(ranks, Unmask(hood.round, hood.attempt, sorted(lost)))
        answers = self.crew.hear_tensors(ranks, Unmasked)
        payloads = {}
        for rank, (answer, tensors) in zip(ranks, answers, strict=True):
            self.traffic[rank] = (answer.reported.bytes_sent, answer.reported.messages_sent)
            expected = hood.opened_bytes(rank, lost)
            payloads[rank] = unpacked(tensors, expected, f"{rank} in round {hood.round}")
        return payloads, [answer.reported for answer, _ in answers]

    def _refuse_single(self, clients: int) -> None:
        if clients < 2:
            raise FedMPIError(
                f"round {self.asked.number}: {clients} of {len(self.asked.cohort)} clients is left "
                "for the sum, which would be its update: lower dropout "
                f"({self.config.federated.dropout:g}), raise fraction "
                f"({self.config.federated.fraction:g}), or look at the clients left out"
            )


def uncancelled(
    hood: Neighbourhood, payloads: dict[int, bytes], lost: frozenset[int]
) -> dict[int, list[Mask]]:
    """What takes from the sum the masks that have not cancelled in it, by the client that has them.

    Of each remaining client that of its own; and those that it has with lost clients on other
    workers, who have sent nothing to cancel them.

    Args:
        hood: of the round.
        payloads: what `Masker.open` gave, by rank.
        lost: the clients that are not in the sum.

    Raises:
        ProtocolError: shares do not fit together.
    """
    shares: dict[int, dict[int, bytes]] = {u: {} for u in sorted(hood.rank)}
    masks: dict[int, list[Mask]] = {v: [] for v in shares if v not in lost}
    for rank, data in payloads.items():
        at = 0
        for v, u in hood.opened(rank, lost):
            shares[u][v] = data[at : at + SHARE_BYTES]
            at += SHARE_BYTES
        for v, _ in hood.handed(rank, lost):
            masks[v].append((data[at : at + SECRET_BYTES], -1))
            at += SECRET_BYTES
    for u, found in shares.items():
        try:
            points = enumerate(hood.neighbours[u], start=1)
            secret = rebuild([(x, found[v]) for x, v in points if v in found], hood.threshold)
        except ProtocolError as error:
            ranks = sorted({hood.rank[v] for v in found})
            raise ProtocolError(
                f"round {hood.round}: a secret of client {u} cannot be opened with what ranks "
                f"{', '.join(map(str, ranks))} hold of it: {error}"
            ) from None
        if u not in lost:
            masks[u].append((secret, -1))
            continue
        for v in hood.neighbours[u]:
            if u < v and v not in lost and hood.rank[v] != hood.rank[u]:
                masks[v].append((pair_seed(secret, hood.round, hood.attempt, v), 1))
    return masks
