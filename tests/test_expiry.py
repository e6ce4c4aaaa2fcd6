"""Stories of messages that disappear, on fakes: what is left of them, and what is not, also after a crash."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import limits
from gearlink import counting, reading
from gearlink.clock import new_id
from gearlink.expiry import expire
from gearlink.protocol import PollForm
from storage.events import ConversationUpdated, Message, MessageExpired, MessagesExpired, Plain
from storage.records import (
    Amendment,
    Conversation,
    Due,
    Head,
    LogEntry,
    Member,
    Mention,
    MessageIndex,
    Pin,
    Reaction,
    Revision,
    Thread,
    ThreadReply,
    Untold,
    Vote,
)
from storage.store import Transaction
from tests.changes import putting
from tests.rooms import Room, open_room
from tests.test_amendments import heard, pin_count, react, say, unsaid


async def head(room: Room) -> Head:
    found = await room.store.get(Head, room.id)
    assert found is not None
    return found


async def test_what_has_disappeared_leaves_only_its_number() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    root = await say(room, bob, "root")
    poll = PollForm(options=["yes", "no"], closes_in_seconds=500)
    message_id = await say(
        room, ann, "canary", kind="poll", poll=poll, reply_to_id=root, mentions=["all"], expires_in_seconds=5
    )
    reply = await say(room, bob, "to what goes", reply_to_id=message_id)
    await room.amendments.pin(ann, message_id, pinned=True)
    await react(room, message_id, 2)
    await room.rewrite(message_id, edited_at=1)
    await room.store.write(putting(Revision(message_id, 1, Plain("canary"), 1), Untold(message_id, (), room.id)))
    await expire(room.store, room.clock, room.id, [2])
    assert heard(room, MessagesExpired) == []
    room.clock.advance(seconds=5)
    for _time in range(2):
        await expire(room.store, room.clock, room.id, [2])

    [notice] = heard(room, MessagesExpired)
    event = notice.entry.event
    assert isinstance(event, MessagesExpired) and event.message_ids == (message_id,)
    numbers = [entry.sequence for entry in await reading.read_log(room.store, room.id, after=0, limit=99)]
    assert numbers == [1, 2, 3, 4, 5]
    stand_in = await room.store.get(Amendment, room.id, 2)
    assert stand_in is not None and isinstance(stand_in.event, MessageExpired)
    assert stand_in.event.message_id == message_id
    for kind in (Revision, Reaction, Vote, Mention, Pin, Untold):
        assert room.store.all(kind) == []
    assert [each.sequence for each in room.store.all(ThreadReply)] == [3]
    assert [each.message_id for each in room.store.all(MessageIndex)] == [root, reply]
    assert await pin_count(room) == 0
    assert "canary" not in repr([room.store.all(kind) for kind in (LogEntry, Amendment)])
    assert Due(room.clock.now() + 495_000, "close-poll", message_id, 0) not in room.store.all(Due)


async def test_the_thread_of_a_message_that_has_disappeared_is_in_no_list() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    root = await say(room, ann, "root", expires_in_seconds=5)
    await say(room, bob, "reply", reply_to_id=root)
    assert len(room.store.all(Thread)) == 1
    room.clock.advance(seconds=5)
    await expire(room.store, room.clock, room.id, [1])
    assert room.store.all(Thread) == []
    assert len((await room.threads.threads(ann, room.id, 10, None)).items) == 0


async def test_a_tombstone_disappears_at_its_time_as_well() -> None:
    room = await open_room()
    ann = room.people[0]
    message_id = await say(room, ann, expires_in_seconds=5)
    await unsaid(room, ann, message_id)
    room.clock.advance(seconds=5)
    await expire(room.store, room.clock, room.id, [1])
    assert room.store.all(LogEntry) == [] == room.store.all(MessageIndex)


async def test_nothing_is_added_to_the_log_of_a_conversation_that_was_deleted() -> None:
    room = await open_room()
    await say(room, room.people[0], expires_in_seconds=5)
    room.clock.advance(seconds=5)

    async def dissolve(tx: Transaction) -> None:
        tx.delete(Conversation, room.id)

    await room.store.write(dissolve)
    await expire(room.store, room.clock, room.id, [1, 2])
    assert heard(room, MessagesExpired) == []
    assert (await head(room)).sequence == 1


async def test_very_many_disappear_in_small_changes() -> None:
    room = await open_room()
    ann = room.people[0]
    count = 2 * limits.EXPIRED_PER_CHANGE_MAX + 1
    ids = [await say(room, ann, expires_in_seconds=5) for _ in range(count)]
    room.clock.advance(seconds=5)
    await expire(room.store, room.clock, room.id, range(1, count + 1))
    told = [notice.entry.event.message_ids for notice in heard(room, MessagesExpired)]  # type: ignore[union-attr]
    assert [len(some) for some in told] == [limits.EXPIRED_PER_CHANGE_MAX] * 2 + [1]
    assert [message_id for some in told for message_id in some] == ids
    assert (await head(room)).message_sequence == 0


async def test_a_crash_between_two_changes_of_an_expiry_is_made_good_by_the_next_run() -> None:
    room = await open_room()
    ann = room.people[0]
    await say(room, ann, "stays")
    await say(room, ann, "gone", expires_in_seconds=5)
    room.clock.advance(seconds=5)
    write = room.store.write

    async def crash_after_one(change: Any) -> Any:
        await write(change)
        room.store.write = write  # type: ignore[method-assign]
        raise OSError("crash")

    room.store.write = crash_after_one  # type: ignore[method-assign]
    with pytest.raises(OSError):
        await expire(room.store, room.clock, room.id, [2])
    assert (await head(room)).message_sequence == 2
    await expire(room.store, room.clock, room.id, [2])
    assert (await head(room)).message_sequence == 1
    assert len(heard(room, MessagesExpired)) == 1


async def test_a_message_that_comes_while_the_head_is_mended_stays_the_newest() -> None:
    room = await open_room()
    ann = room.people[0]
    await say(room, ann, "gone", expires_in_seconds=5)
    room.clock.advance(seconds=5)
    scan = room.store.scan

    async def scan_while_somebody_writes(*asked: Any, **bounds: Any) -> Any:
        found = await scan(*asked, **bounds)
        room.store.scan = scan  # type: ignore[method-assign]
        await say(room, ann, "new")
        return found

    room.store.scan = scan_while_somebody_writes  # type: ignore[method-assign]
    await expire(room.store, room.clock, room.id, [1])
    newest = await room.store.get(LogEntry, room.id, (await head(room)).message_sequence)
    assert newest is not None and isinstance(newest.event, Message) and newest.event.content == Plain("new")


@given(st.lists(st.sampled_from("mxs"), max_size=30), st.booleans())
@settings(max_examples=60, deadline=None)
async def test_the_head_points_to_the_newest_message_that_is_left(kinds: list[str], spoken_since: bool) -> None:
    room = await open_room()
    ann = room.people[0]
    for kind in kinds:
        if kind == "s":
            event = ConversationUpdated(new_id(), ann.user_id, 1, "name", "")

            async def change(tx: Transaction, event: ConversationUpdated = event) -> None:
                await tx.append(room.id, event)

            await room.store.write(change)
        else:
            await say(room, ann, expires_in_seconds=5 if kind == "x" else None)
    room.clock.advance(seconds=5)
    if spoken_since:
        await say(room, ann)
    await expire(room.store, room.clock, room.id, range(1, len(kinds) + 1))
    left = [entry.sequence for entry in room.store.all(LogEntry) if isinstance(entry.event, Message)]
    if room.store.all(Head):
        assert (await head(room)).message_sequence == max(left, default=0)
    assert len(left) == kinds.count("m") + spoken_since


async def test_behind_a_long_stretch_without_messages_the_head_stays_ahead_of_what_there_may_be() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    await say(room, ann, "far back")
    stretch = limits.UNREAD_SCAN_EVENTS_MAX + 5
    event = ConversationUpdated(new_id(), ann.user_id, 1, "name", "")

    async def change(tx: Transaction) -> None:
        for sequence in range(2, stretch + 2):
            tx.put(LogEntry(room.id, sequence, event))
        tx.put(Head(room.id, stretch + 1, 1, 1))

    await room.store.write(change)
    await say(room, ann, "gone", expires_in_seconds=5)
    room.clock.advance(seconds=5)
    await expire(room.store, room.clock, room.id, [stretch + 2])
    found = await head(room)
    assert 1 < found.message_sequence <= stretch + 1
    member = await room.store.get(Member, room.id, bob.user_id)
    assert member is not None
    assert await counting.unread(room.store, member, found, room.clock.now()) == 1
