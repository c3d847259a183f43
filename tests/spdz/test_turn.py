"""Parties and dealer in one call: what each draws, deals and opens."""

from __future__ import annotations

import pytest
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.transport import Transport
from fedmpi.spdz.member import DIRECT, Dealer, Party
from fedmpi.spdz.turn import DealerTurn, PartyTurn
from tests.comm.worlds import World, endpoint_on

Tensor = torch.Tensor
N = 3000
"""Elements: more than fit into a header."""


def member(transport: Transport) -> Party | Dealer:
    ranks = list(range(1, transport.size))
    keys = [bytes([rank]) * 16 for rank in ranks]
    endpoint = endpoint_on(transport)
    if transport.rank == 0:
        return Dealer(endpoint, ranks, keys)
    return Party(endpoint, ranks, keys[transport.rank - 1])


@pytest.mark.parametrize("number", [1, 2**62 + 5])
def test_draws_and_deals_fit_together(world: World, number: int) -> None:
    value = torch.arange(N) * 2**40 - 7
    short = torch.arange(N).to(torch.int16)

    def scenario(transport: Transport) -> list[Tensor] | None:
        me = member(transport)
        if isinstance(me, Dealer):
            turn = DealerTurn(me, number, me.count("test"))
            drawn = turn.draw([N])
            turn.deal(value)
            turn.deal(short)
            turn.deal_bits(value)
            bits = turn.draw_bits([N])
            turn.end()
            me.endpoint.flush()
            return [drawn, bits]
        part = PartyTurn(me, number, me.count("test"))
        mine = [
            part.draw([N]), part.dealt([N]), part.dealt([N], torch.int16),
            part.dealt_bits([N]), part.draw([N]),
        ]  # fmt: skip
        found = [part.open(t) if k < 3 else part.open_bits(t) for k, t in enumerate(mine)]
        assert torch.equal(found[1], value)
        assert torch.equal(found[2], short)
        assert torch.equal(found[3], value)
        me.endpoint.flush()
        return [found[0], found[4]]

    if world.size < 3:
        return
    results = world.run(scenario)
    for found in results.values():
        for one, other in zip(found or [], next(iter(results.values())) or [], strict=True):
            assert torch.equal(one, other)


def test_who_hears_what_in_an_opening(world: World) -> None:
    """Up to `DIRECT` parties tell all others; more tell the first, who tells the sum."""

    def scenario(transport: Transport) -> None:
        me = member(transport)
        if isinstance(me, Dealer):
            return
        told: list[int] = []
        send = me.send
        me.send = lambda rank, *rest: (told.append(rank), send(rank, *rest))[1]  # type: ignore
        total = PartyTurn(me, 1, me.count("test")).open(torch.full((N,), transport.rank))
        assert torch.equal(total, torch.full((N,), sum(me.ranks)))
        everybody = len(me.ranks) <= DIRECT or me.first
        assert told == (me.others if everybody else [1])
        me.endpoint.flush()

    if world.size >= 3:
        world.run(scenario)


def test_what_is_left_over_is_dropped_and_what_is_given_up_is_told(world: World) -> None:
    from fedmpi.spdz.member import Broken

    def scenario(transport: Transport) -> None:
        me = member(transport)
        if isinstance(me, Dealer):
            return
        if me.first:
            for rank in me.others:
                for number in (3, 2**62, 4):
                    me.send(rank, Channel.OPENING, number, [torch.full((N,), number)])
            me.give_up(2**62 + 10, 5, "of a reason")
            for rank in me.others:
                me.send(rank, Channel.OPENING, 7, [torch.full((N,), 7)])
        else:
            assert int(me.receive(1, Channel.OPENING, 4)[0][0]) == 4, "left over: 3 and 2^62"
            with pytest.raises(Broken, match=r"rank 1 has given up .*: of a reason"):
                me.receive(1, Channel.OPENING, 2**62 + 14)
            assert int(me.receive(1, Channel.OPENING, 7)[0][0]) == 7
        me.endpoint.flush()

    if world.size >= 3:
        world.run(scenario)


def test_a_party_that_asks_no_more_keeps_nobody_waiting(world: World) -> None:
    """Frames beside a header, which nobody will receive: their sender gets its memory back."""

    def scenario(transport: Transport) -> None:
        me = member(transport)
        if isinstance(me, Dealer):
            return
        for rank in me.others:
            me.send(rank, Channel.OPENING, 5, [torch.zeros(N)])
        me.give_up(5, 1, "nothing")
        me.endpoint.flush()
        for rank in me.others:
            me.send(rank, Channel.OPENING, 6, [torch.ones(N)])
        for rank in me.others:
            assert me.receive(rank, Channel.OPENING, 6)[0].sum() == N
        me.endpoint.flush()

    if world.size >= 3:
        world.run(scenario)
