"""One call of an operator by one member: what it draws, deals and opens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.spdz.member import DIRECT, Count, Dealer, Party
from fedmpi.workers.worker import OWNER

Shape = Sequence[int]


class PartyTurn:
    """A party's part in one call.

    Args:
        party: who makes it.
        number: of the call.
        count: takes in what it sends.

    Attributes:
        first: whether it is the first party, which adds what is public.
    """

    def __init__(self, party: Party, number: int, count: Count) -> None:
        self.party = party
        self.number = number
        self.count = count
        self.first = party.first
        self._dealt: list[torch.Tensor] | None = None

    def draw(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """This party's share of a uniformly random value: from its own stream."""
        return self.party.stream_of(self.number).uniform(self.number, shape, dtype)

    def dealt(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """This party's share of a value that the dealer chose: from its stream or, for the last
        party, from the dealer.
        """
        if not self.party.last:
            return self.draw(shape, dtype)
        if self._dealt is None:
            self._dealt = self.party.receive(OWNER, Channel.DEALING, self.number)
        return self._dealt.pop(0).view(tuple(shape))

    def dealt_bits(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """As `dealt`, of words that are shared by exclusive or."""
        return self.dealt(shape, dtype)

    def open(self, share: torch.Tensor) -> torch.Tensor:
        """The sum of all parties' shares."""
        return self._together(share, torch.Tensor.add_)

    def open_bits(self, share: torch.Tensor) -> torch.Tensor:
        """The exclusive or of all parties' words."""
        return self._together(share, torch.Tensor.bitwise_xor_)

    def _together(self, share: torch.Tensor, combine: object) -> torch.Tensor:
        party, number = self.party, self.number
        assert callable(combine)
        share = share.contiguous()
        told = party.others if len(party.ranks) <= DIRECT or party.first else party.ranks[:1]
        self.count.openings += 1
        self.count.nbytes += share.nbytes * len(told)
        if len(party.ranks) <= DIRECT:
            for rank in party.others:
                party.send(rank, Channel.OPENING, number, [share])
            total = None
            for rank in party.others:
                [theirs] = party.receive(rank, Channel.OPENING, number)
                total = combine(theirs, share if total is None else total)
            assert total is not None
            return total
        if not party.first:
            party.send(party.ranks[0], Channel.OPENING, number, [share])
            [total] = party.receive(party.ranks[0], Channel.OPENING, number)
            return total
        total = share.clone()
        for rank in party.others:
            [theirs] = party.receive(rank, Channel.OPENING, number)
            total = combine(total, theirs)
        for rank in party.others:
            party.send(rank, Channel.OPENING, number, [total])
        # The others' memory is their own; this one may be changed by what follows.
        party.endpoint.flush()
        return total


class DealerTurn:
    """The dealer's part in one call; nothing that is opened reaches it.

    Args:
        dealer: who makes it.
        number: of the call.
        count: takes in what it sends.
    """

    def __init__(self, dealer: Dealer, number: int, count: Count) -> None:
        self.dealer = dealer
        self.number = number
        self.count = count
        self._corrections: list[torch.Tensor] = []

    def draw(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The random value of which every party has drawn a share."""
        first, *others = self.dealer.streams
        total = first.uniform(self.number, shape, dtype)
        for stream in others:
            total += stream.uniform(self.number, shape, dtype)
        return total

    def draw_bits(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The random bits of which every party has drawn a share by exclusive or."""
        first, *others = self.dealer.streams
        total = first.uniform(self.number, shape, dtype)
        for stream in others:
            total ^= stream.uniform(self.number, shape, dtype)
        return total

    def others(self, shape: Shape, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The sum of the shares that all but the last party draw of a value to be dealt."""
        first, *others = self.dealer.streams[:-1]
        total = first.uniform(self.number, shape, dtype)
        for stream in others:
            total += stream.uniform(self.number, shape, dtype)
        return total

    def others_mixed(self, shape: Shape, words: int) -> torch.Tensor:
        """As `others`, of which the first words are shared by exclusive or."""
        first, *others = self.dealer.streams[:-1]
        total = first.uniform(self.number, shape)
        for stream in others:
            share = stream.uniform(self.number, shape)
            total[:words] ^= share[:words]
            total[words:] += share[words:]
        return total

    def give(self, share: torch.Tensor) -> None:
        """The last party's share of a value to be dealt."""
        self._corrections.append(share)

    def deal(self, value: torch.Tensor) -> None:
        """Shares a value: all but the last party draw, and the last one gets the rest."""
        self.give(torch.sub(value, self.others(value.shape, value.dtype)))

    def deal_bits(self, value: torch.Tensor) -> None:
        """As `deal`, by exclusive or."""
        rest = value
        for stream in self.dealer.streams[:-1]:
            rest = rest ^ stream.uniform(self.number, value.shape, value.dtype)
        self.give(rest)

    def end(self) -> None:
        """Sends the last party what was dealt."""
        if self._corrections:
            last = self.dealer.ranks[-1]
            nbytes = sum(tensor.nbytes for tensor in self._corrections)
            self.count.nbytes += nbytes
            self.dealer.bytes_ahead += nbytes
            self.dealer.send(last, Channel.DEALING, self.number, self._corrections)
