"""A group of parties as the owner sees it: one link for all of them and for the dealer.

It has what a link to one worker has. So pointers, the inference of shapes, recording and plans
work on shares as they do on tensors: a call goes to every party, under one id, and to the
dealer, who is here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.kept_memory import keep_memory
from fedmpi.comm.time_slice import ask_for_short_turns
from fedmpi.errors import RemoteError, UsageError
from fedmpi.spdz.material import Material
from fedmpi.spdz.member import Dealer, Join, members
from fedmpi.spdz.owned import Split, TakeShare
from fedmpi.spdz.protocols import operators
from fedmpi.spdz.revealed import Reveal, RevealTo, TakeSum
from fedmpi.spdz.stream import new_key
from fedmpi.tensors.link import Learnt, Link, Remote
from fedmpi.tensors.pointer import PointerTensor, call, point
from fedmpi.tensors.record import constant
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.operate import Fetched, Put
from fedmpi.workers.program import Program, Replay
from fedmpi.workers.signature import Callee

FIRST_KEY = 2**48
"""Ids of shares start here: no link to a single worker gets so far."""

_keys = itertools.count(FIRST_KEY)
MOST_AHEAD = 512 * 2**20
"""Bytes that the dealer may have sent before it asks whether they have left."""


def _number_of(ranks: Sequence[int]) -> int:
    """The same for the same parties in every program, so that a saved plan fits."""
    return int.from_bytes(sha256(repr(list(ranks)).encode()).digest()[:6], "big")


class Numbers:
    """Numbers of calls: given once, whatever group makes them."""

    def __init__(self) -> None:
        self._next = 1

    def take(self, how_many: int) -> int:
        """The first of so many."""
        first = self._next
        self._next += how_many
        return first


_numbers = Numbers()


class Group:
    """The parties of secure computations and the dealer.

    Args:
        workers: who become parties, at least two.

    Attributes:
        number: of the group, on all members.
        links: to the parties.
        rank: for messages, in place of a worker's.
        material: dealt beforehand, for the plan that it fits.
        last_key: the id that was given last.
        scopes_ended: how often objects were deleted to which pointers may live on.

    Raises:
        UsageError: one party only, or the same worker twice.
    """

    def __init__(self, workers: Sequence[RemoteWorker]) -> None:
        self.links = [worker.link for worker in workers]
        ranks = [link.rank for link in self.links]
        if len(ranks) < 2 or len(set(ranks)) < len(ranks):
            raise UsageError(
                f"parties {ranks}: a secret is shared among at least 2 different workers"
            )
        self.number = _number_of(ranks)
        self.rank = ", ".join(map(str, ranks))
        self.ranks = ranks
        keys = [new_key() for _ in ranks]
        for link, key in zip(self.links, keys, strict=True):
            link.tell(Join(self.number, ranks, key))
            link.beside.update(self.links)
            link.groups.append(self)
        self.crew = self.links[0].crew
        self.dealer = Dealer(self.crew.endpoint, ranks, keys)
        ask_for_short_turns()
        keep_memory()
        self.material: Material | None = None
        self.last_key = 0
        self.scopes_ended = 0
        self._callees: dict[int, tuple[Any, Callee | Replay]] = {}
        self._dealt: dict[int, torch.Tensor] = {}
        self._zero = self.public(torch.zeros((), dtype=torch.int64))

    # ---- what a link has ----

    @property
    def open(self) -> bool:
        """False once the job has ended."""
        return self.links[0].open

    def make(self) -> Remote:
        """A handle with a new id, for an object that is about to be on all members."""
        self.last_key = next(_keys)
        return Remote(self, self.last_key)  # type: ignore[arg-type]

    def forget_since(self, key: int) -> None:
        """Deletes what was made after that id, though pointers to it may live on."""
        self.scopes_ended += 1
        for made in range(key + 1, self.last_key + 1):
            self.release(made)

    def peer(self, link: Any) -> Any:
        """As a link's."""
        return link

    def release(self, key: int) -> None:
        """Deletes an object on all members."""
        self._dealt.pop(key, None)
        for link in self.links:
            link.dead.append(key)

    def call(
        self,
        known: Learnt,
        tensors: list[int],
        numbers: list[int | float],
        results: list[int],
        seed: int,
    ) -> None:
        """One call by all members, in the order of the program."""
        material = self.material
        if material is not None and not material.fits(known.signature):
            material = None
        if material is not None:
            seed = material.take()
        elif known.numbers:
            seed = _numbers.take(known.numbers)
        for link in self.links:
            link.call(known, tensors, numbers, results, seed)
        if known.numbers or self.links[0].idle:
            self.flush()  # the parties are to work while the dealer does
        if material is None:
            self._deal(known, tensors, numbers, results, seed)
        else:
            self._hand_out(material, known, results, seed)

    def _hand_out(self, material: Material, plan: Any, results: list[int], seed: int) -> None:
        """Sends what was dealt beforehand."""
        self.flush()
        count = self.dealer.count("dealt beforehand")
        try:
            for step, tensors in material.frames():
                count.nbytes += sum(tensor.nbytes for tensor in tensors)
                self.dealer.send(self.ranks[-1], Channel.DEALING, seed + step, tensors)
        except BaseException as error:
            self.dealer.give_up(seed, plan.numbers, f"the dealer failed: {error}")
            raise
        for key, there in zip(results, plan.results, strict=True):
            if key:
                shape, stride = there.shape, there.stride
                nothing = torch.empty_strided(shape, stride, dtype=there.dtype, device="meta")
                self._dealt[key] = nothing

    def _deal(
        self,
        known: Learnt,
        tensors: list[int],
        numbers: list[int | float],
        results: list[int],
        seed: int,
    ) -> None:
        kept = self._callees.get(id(known.signature))
        if kept is None:
            signature = known.signature
            callee = Replay(signature) if isinstance(signature, Program) else Callee(signature)
            # With the signature: its id could be another's, once it has gone.
            kept = self._callees[id(signature)] = signature, callee
        callee = kept[1]
        # Two jobs of one process may have groups of the same number.
        members()[self.number] = self.dealer
        try:
            with torch.no_grad():
                made = callee([self._dealt[key] for key in tensors], numbers, seed)
        except BaseException as error:
            if known.numbers:
                self.dealer.give_up(seed, known.numbers, f"the dealer failed: {error}")
            raise
        if self.dealer.bytes_ahead > MOST_AHEAD:
            # The dealer is far ahead: what waits here to be sent is memory.
            self.flush()
            self.crew.endpoint.flush()
            self.dealer.bytes_ahead = 0
        if isinstance(made, torch.Tensor):
            made = (made,)
        for key, tensor in zip(results, made or (), strict=True):
            if key:
                self._dealt[key] = tensor

    def flush(self) -> None:
        """Sends all parties what is queued."""
        for link in self.links:
            link.flush()

    # ---- values in and out ----

    def share(self, encoded: torch.Tensor) -> PointerTensor:
        """Shares of a value that is here.

        Args:
            encoded: int64.
        """
        like = call(torch.ops.aten.expand.default, (self._zero, list(encoded.shape)), {})
        self.dealer.input = encoded
        found: PointerTensor = call(operators.receive, (like, self.number), {})
        return found

    def reveal(self, shares: PointerTensor) -> torch.Tensor:
        """The sum of all shares, here: int64.

        Raises:
            RemoteError: a party has failed, or holds its share as private.
        """
        command = Reveal(self._key_of(shares), self.number, _numbers.take(1))
        for link in self.links:
            link.tell(command)
        failure: RemoteError | None = None
        total = torch.zeros(shares.shape, dtype=torch.int64)
        for link in self.links:
            try:
                _, [share] = link.hear(Fetched)
                total += share
            except RemoteError as error:  # the others' answers must not wait for another question
                failure = failure or error
        if failure is not None:
            raise failure
        return total

    def _key_of(self, shares: PointerTensor) -> int:
        """The id of shares; refused for a stand-in, whose id would be that of something else."""
        link: Any = shares.remote.link
        return shares.remote.key if link is self else link.tell()

    def share_object(self, pointer: PointerTensor, bits: int) -> PointerTensor:
        """Shares of what a worker has; neither the dealer nor another party sees it.

        Args:
            pointer: to the worker's object.
            bits: fractional bits.

        Raises:
            UsageError: the worker belongs to another job than the parties.
        """
        source = pointer.remote.link
        if source.crew is not self.crew:
            raise UsageError(f"{pointer!r} belongs to another job than ranks {self.rank}")
        return self._split(source, pointer.remote.key, pointer.shape, bits)

    def share_again(self, shares: PointerTensor, source: Group) -> PointerTensor:
        """Shares, among these parties, of what other parties share: each shares its share.

        Args:
            shares: on the other parties.
            source: the other parties.
        """
        key = source._key_of(shares)
        first, *others = (self._split(link, key, shares.shape, 0, True) for link in source.links)
        for part in others:
            first = call(torch.ops.aten.add.Tensor, (first, part), {})
        return first

    def _split(
        self, source: Link, key: int, shape: Sequence[int], bits: int, again: bool = False
    ) -> PointerTensor:
        remote = self.make()
        source.tell(Split(key, self.ranks, remote.key, bits, again))
        for link in self.links:
            if link is not source:
                link.tell(TakeShare(remote.key, source.rank))
            source.beside.add(link)
        nothing = torch.empty(tuple(shape), dtype=torch.int64, device="meta")
        self._dealt[remote.key] = nothing
        return point(remote, nothing)

    def gather(self, shares: PointerTensor, target: Link) -> PointerTensor:
        """The sum of all shares on one worker, int64; nobody else sees it."""
        key = self._key_of(shares)
        remote = target.make()
        command = RevealTo(key, self.number, _numbers.take(1), target.rank)
        for link in self.links:
            link.tell(command)
            target.beside.add(link)
        target.tell(TakeSum(remote.key, self.ranks))
        return point(remote, shares)

    def public(self, tensor: torch.Tensor, dealer: bool = False) -> PointerTensor:
        """The same values for every party.

        Args:
            tensor: int64.
            dealer: whether it gets them too, as positions in a mask; it needs no others.
        """
        remote = self.make()
        # A copy, since the program may write into what it still holds.
        self.tell(Put(remote.key, [], "", False), [tensor.detach().clone()])
        if dealer:
            self._dealt[remote.key] = tensor
        return constant(point(remote, tensor))

    def tell(self, command: Put, tensors: Sequence[torch.Tensor]) -> None:
        """Stores a public tensor on every party; the dealer has one without values."""
        for link in self.links:
            link.tell(command, tensors)
        self._dealt[command.key] = torch.empty_like(tensors[0], device="meta")


_known: dict[tuple[int, ...], Group] = {}


def group_of_workers(workers: Sequence[RemoteWorker]) -> Group:
    """The group of these workers, made when it is first asked for."""
    key = tuple(id(worker.link) for worker in workers)
    found = _known.get(key)
    if found is None or not found.open:
        for ended in [k for k, group in _known.items() if not group.open]:
            del _known[ended]
        found = _known[key] = Group(workers)
    return found
