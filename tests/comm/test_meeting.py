"""Meetings after a death, without MPI: who is ended, by whom, and who gives up when."""

from __future__ import annotations

from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest

from fedmpi.comm.meeting import SECONDS_TO_DIE, SECONDS_WITHOUT_OWNER, Meeting
from fedmpi.errors import FedMPIError, LostRank

LIMIT = 5.0
DAY = 24 * 3600.0


class Sent:
    def __init__(self, value: int, ends_when_taken: bool) -> None:
        self.value = value
        self.done = not ends_when_taken

    def Test(self) -> bool:
        return self.done

    def Recv(self, into: Any) -> None:
        into[0], self.done = self.value, True


class Wire:
    """What a rank sees of the communicator of the world."""

    def __init__(self, me: int, boxes: dict[tuple[int, int, int], deque[Sent]]) -> None:
        self._me, self._boxes = me, boxes

    def Isend(self, number: Any, to: int, tag: int, synchronous: bool = False) -> Sent:
        sent = Sent(int(number[0]), synchronous)
        self._boxes[self._me, to, tag].append(sent)
        return sent

    def Issend(self, number: Any, to: int, tag: int) -> Sent:
        return self.Isend(number, to, tag, synchronous=True)

    def Improbe(self, source: int, tag: int) -> Sent | None:
        box = self._boxes[source, self._me, tag]
        return box.popleft() if box else None


class Hall:
    """Ranks that meet: 0 to 2 on one node, 3 and 4 on another.

    Attributes:
        living: ranks.
        away: of these, who does not come.
        reported: by the owner.
        killed: (by whom, who).
        immortal: who outlives being killed.
    """

    def __init__(self) -> None:
        self.hosts = ["one", "one", "one", "two", "two"]
        self.living = [0, 1, 2, 3, 4]
        self.away: set[int] = set()
        self.reported: list[int] = []
        self.killed: list[tuple[int, int]] = []
        self.immortal: set[int] = set()
        self.boxes: dict[tuple[int, int, int], deque[Sent]] = defaultdict(deque)
        self.begin(1)

    def begin(self, number: int) -> None:
        """The meeting of that number."""
        self.meetings = [self._meeting(rank, number) for rank in range(5)]

    def _meeting(self, me: int, number: int) -> Meeting:
        def kill(rank: int) -> bool:
            if self.hosts[rank] != self.hosts[me]:
                return False
            self.killed.append((me, rank))
            if rank not in self.immortal:
                self.living.remove(rank)
            return True

        hall = self

        class Members:
            hosts = self.hosts

            @property
            def living(self) -> list[int]:
                return list(hall.living)

        members: Any = Members()
        members.me, members.kill = me, kill
        mpi = SimpleNamespace(COMM_WORLD=Wire(me, self.boxes), Exception=RuntimeError)
        return Meeting(mpi, members, number, DAY if me else LIMIT, self.reported.append)

    def wait(self, first: float, last: float) -> None:
        """Seconds of the meeting pass, in which all that live and are not away attend."""
        for half_second in range(int(2 * first), int(2 * last)):
            for rank in list(self.living):
                if rank in self.living and rank not in self.away:
                    self.meetings[rank].attend(half_second / 2)


def test_who_comes_late_is_waited_for() -> None:
    hall = Hall()
    hall.away = {2, 3}
    hall.wait(0, LIMIT - 1)
    hall.away = {4}  # has come, and hangs now
    hall.wait(LIMIT - 1, LIMIT + 3)
    assert (hall.reported, hall.living) == ([], [0, 1, 2, 3, 4])


def test_who_does_not_come_is_ended_by_one_of_its_node() -> None:
    hall = Hall()
    hall.away = {2, 3}
    hall.wait(0, LIMIT + 2)
    assert hall.reported == [2, 3]
    assert hall.killed == [(0, 2), (4, 3)]
    assert hall.living == [0, 1, 4]


def test_who_has_come_and_hangs_is_ended_too() -> None:
    hall = Hall()
    hall.wait(0, 2)
    hall.away = {1}
    hall.wait(2, LIMIT + 4)
    assert hall.killed == [(0, 1)]


def test_who_cannot_be_ended_ends_the_job() -> None:
    hall = Hall()
    hall.away = {3, 4}  # nobody else is on their node
    hall.wait(0, LIMIT + SECONDS_TO_DIE)
    assert hall.reported == [3, 4]
    with pytest.raises(FedMPIError, match=r"rank 3 on two, rank 4 on two hangs and could not be"):
        hall.wait(LIMIT + SECONDS_TO_DIE, LIMIT + SECONDS_TO_DIE + 2)


def test_a_death_that_is_not_noticed_ends_the_job() -> None:
    hall = Hall()
    hall.away, hall.immortal = {1}, {1}
    with pytest.raises(FedMPIError, match=r"within 16 s: rank 1 on one hangs"):
        hall.wait(0, LIMIT + SECONDS_TO_DIE + 2)
    assert hall.killed == [(0, 1)], "once"


def test_all_are_there_and_do_not_agree() -> None:
    with pytest.raises(FedMPIError, match=r"within 20 s: one of them hangs"):
        Hall().wait(0, 2 * LIMIT + SECONDS_TO_DIE + 1)


def test_words_do_not_pile_up_while_the_owner_is_away() -> None:
    hall = Hall()
    hall.away = {0}
    hall.wait(0, 3600)
    assert all(len(box) <= 1 for box in hall.boxes.values())
    hall.meetings[0].attend(0.0)  # for it the meeting begins
    hall.meetings[0].attend(LIMIT)
    assert not any(hall.boxes.values())
    assert hall.reported == []


def test_the_owner_is_not_waited_for_without_a_limit() -> None:
    hall = Hall()
    hall.away = {0}
    hall.wait(0, 60)
    with pytest.raises(FedMPIError, match="the owner did not come for 24 hours"):
        hall.wait(DAY, DAY + 2)


def test_without_an_owner_the_lowest_speaks_first() -> None:
    hall = Hall()
    hall.living.remove(0)
    hall.away = {3}
    hall.wait(0, SECONDS_WITHOUT_OWNER)
    for rank in (4, 2):
        hall.meetings[rank].attend(SECONDS_WITHOUT_OWNER + 0.25)
    with pytest.raises(LostRank, match=r"the owner .* has died") as caught:
        hall.meetings[1].attend(SECONDS_WITHOUT_OWNER + 0.25)
    assert caught.value.ranks == (0,)


def test_an_order_of_an_earlier_meeting_is_not_obeyed() -> None:
    hall = Hall()
    hall.away = {3, 4}
    hall.wait(0, LIMIT + 1)
    assert hall.reported == [3, 4]
    hall.begin(2)  # both have come after all
    hall.away = set()
    hall.wait(0, 2)
    assert hall.killed == []
