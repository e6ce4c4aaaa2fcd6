"""Stories of storms: however many react at once, a room hears ten times a second at most, and at last of everything."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from config import limits
from gearlink import storms
from gearlink.accounts import Actor
from storage.events import Message, PollChanged, ReactionChanged
from storage.notices import Appended, Notice
from storage.records import Conversation, Untold
from storage.store import StoreFull, Transaction
from tests.people import log_captured
from tests.rooms import Room, calm, open_room, somebody


def message_in(notice: Appended) -> Message:
    """The message that is told along with the event."""
    assert notice.subject is not None and isinstance(notice.subject.event, Message)
    return notice.subject.event


class Ear:
    """Hears when a room is told of a change, and of what tally."""

    def __init__(self, room: Room) -> None:
        self.heard: list[tuple[float, Appended]] = []
        room.store.listen(self.hear)

    def hear(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Appended) and isinstance(notice.entry.event, ReactionChanged | PollChanged):
                self.heard.append((trio.current_time(), notice))

    @property
    def counts(self) -> list[int]:
        """Of the first emoji, as each event told it."""
        found = []
        for _at, notice in self.heard:
            found.append(message_in(notice).reactions[0].count)
        return found

    def most_in_a_second(self) -> int:
        times = [at for at, _notice in self.heard]
        return max(sum(start <= at < start + 1.0 for at in times) for start in times)


@asynccontextmanager
async def running(room: Room) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(room.storms.run)
        yield nursery
        nursery.cancel_scope.cancel(reason="the story is over")


async def crowd(room: Room, count: int) -> list[Actor]:
    people = [somebody() for _ in range(count)]
    for person in people:
        await room.admit(person)
    return people


async def test_a_few_reactions_are_told_one_by_one_and_at_once(autojump_clock: MockClock) -> None:
    room = await open_room(limits.CHANGES_TOLD_PER_SECOND)
    ear, message = Ear(room), await room.post(room.people[0])
    for person in room.people:
        await room.reactions.react(person, message, "👍", added=True)
    assert ear.counts == list(range(1, limits.CHANGES_TOLD_PER_SECOND + 1))
    assert room.store.all(Untold) == []


async def test_a_storm_is_told_ten_times_a_second_and_its_end_tells_all(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    people = await crowd(room, 500)
    async with running(room):
        for person in people:
            await room.reactions.react(person, message, "👍", added=True)
            await trio.sleep(0.006)
        await calm()
    assert ear.most_in_a_second() == limits.CHANGES_TOLD_PER_SECOND
    assert ear.counts[-1] == 500 and ear.counts == sorted(ear.counts)
    assert len(ear.heard) >= 3 * limits.CHANGES_TOLD_PER_SECOND - 5, "the room follows it while it lasts"
    assert (await room.message(message)).reactions[0].count == 500
    assert room.store.all(Untold) == []
    sequences = [notice.entry.sequence for _at, notice in ear.heard]
    assert sequences == list(range(2, 2 + len(sequences))), "the log has no gap"


async def test_in_the_middle_of_a_storm_its_events_come_evenly(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    async with running(room):
        for person in await crowd(room, 400):
            await room.reactions.react(person, message, "👍", added=True)
            await trio.sleep(0.01)
        await calm()
    times = [at for at, _notice in ear.heard if at > 1.5]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) < 0.2


async def test_what_waits_is_not_overtaken(autojump_clock: MockClock) -> None:
    room = await open_room(limits.CHANGES_TOLD_PER_SECOND + 2)
    ear, message = Ear(room), await room.post(room.people[0])
    for person in room.people[:-1]:
        await room.reactions.react(person, message, "👍", added=True)
    await calm()
    await calm()
    await room.reactions.react(room.people[-1], message, "👍", added=True)
    assert len(ear.heard) == limits.CHANGES_TOLD_PER_SECOND
    async with running(room):
        assert ear.counts[-1] == len(room.people) and len(ear.heard) == limits.CHANGES_TOLD_PER_SECOND + 1


async def test_each_message_has_a_storm_of_its_own(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear = Ear(room)
    stormy, calm_one = await room.post(room.people[0]), await room.post(room.people[0])
    people = await crowd(room, 30)
    async with running(room):
        for person in people:
            await room.reactions.react(person, stormy, "👍", added=True)
        await room.reactions.react(people[0], calm_one, "👍", added=True)
        assert ear.heard[-1][1].entry.event.message_id == calm_one  # type: ignore[union-attr]


async def test_a_storm_that_a_crash_cut_off_is_told_at_the_start(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear = Ear(room)
    messages = [await room.post(room.people[0]) for _ in range(120)]  # more than one change tells of
    people = await crowd(room, 11)
    for message in messages:
        for person in people:
            await room.reactions.react(person, message, "👍", added=True)
    assert len(room.store.all(Untold)) == 120
    room.restart()
    ear.heard.clear()
    async with running(room):
        assert len(ear.heard) == 120 and set(ear.counts) == {11}
        assert room.store.all(Untold) == []


async def test_reactions_and_votes_of_one_storm_are_both_told(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, poll = Ear(room), await room.ask(room.people[0], "yes", "no")
    async with running(room):
        for person in await crowd(room, 40):
            await room.polls.vote(person, poll, [0])
            await room.reactions.react(person, poll, "👍", added=True)
        [waiting] = room.store.all(Untold)
        assert {type(event) for event in waiting.events} == {ReactionChanged, PollChanged}
        await calm()
        await calm()
    assert ear.most_in_a_second() <= limits.CHANGES_TOLD_PER_SECOND
    for kind in (ReactionChanged, PollChanged):
        last = [notice for _at, notice in ear.heard if isinstance(notice.entry.event, kind)][-1]
        message = message_in(last)
        assert message.poll is not None
        assert (message.reactions[0].count, message.poll.voters) == (40, 40)


@pytest.mark.parametrize("end", ["deleted", "settled", "expired", "gone with its conversation"])
async def test_nothing_is_told_of_a_message_that_is_gone(end: str, autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    for person in await crowd(room, 30):
        await room.reactions.react(person, message, "👍", added=True)
    heard = len(ear.heard)

    async def settle(tx: Transaction) -> None:
        if end == "settled":
            await storms.settle(tx, message)
        else:
            tx.delete(Conversation, room.id)

    if end == "deleted":
        await room.bury(message)
    elif end == "expired":
        await room.rewrite(message, expires_at=room.clock.now())
    else:
        await room.store.write(settle)
    async with running(room):
        await calm()
    assert len(ear.heard) == heard
    assert room.store.all(Untold) == []


async def test_without_room_on_the_disk_a_storm_is_told_later(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    with log_captured() as log:
        async with running(room):
            for person in await crowd(room, 30):
                await room.reactions.react(person, message, "👍", added=True)
            room.store.fail_next = StoreFull("no room")
            await calm()
            assert ear.counts[-1] == limits.CHANGES_TOLD_PER_SECOND
            await trio.sleep(2.0)
            assert ear.counts[-1] == 30
        assert "storms.postponed" in log.read()


async def test_a_refused_change_leaves_nothing_to_tell(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    people = await crowd(room, 11)
    async with running(room):
        for person in people[:10]:
            await room.reactions.react(person, message, "👍", added=True)
        room.store.fail_next = StoreFull("no room")
        with pytest.raises(StoreFull):
            await room.reactions.react(people[10], message, "👍", added=True)
        await calm()
        await calm()
    assert ear.counts[-1] == 10 and len(ear.heard) == 10


async def test_the_memory_of_storms_is_bounded(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storms, "_PACES_MAX", 5)
    monkeypatch.setattr(storms, "_WAITING_MAX", 3)
    room = await open_room(1)
    messages = [await room.post(room.people[0]) for _ in range(8)]
    for person in await crowd(room, 12):
        for message in messages:
            await room.reactions.react(person, message, "👍", added=True)
    assert len(room.storms._paces) <= 5 and len(room.storms._waiting) <= 3
    assert len(room.store.all(Untold)) <= 3
    await calm()
    await room.reactions.react(room.people[0], messages[0], "👍", added=True)
    assert len(room.storms._paces) == 1, "who has been calm for a second is forgotten"


async def test_an_event_of_a_storm_keeps_its_own_id(autojump_clock: MockClock) -> None:
    room = await open_room(1)
    ear, message = Ear(room), await room.post(room.people[0])
    async with running(room):
        for person in await crowd(room, 60):
            await room.reactions.react(person, message, "👍", added=True)
            await trio.sleep(0.05)
        await calm()
    ids = [notice.entry.event.event_id for _at, notice in ear.heard]
    assert len(set(ids)) == len(ids)
