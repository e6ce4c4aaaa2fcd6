"""Stories of threads: replies below a message, and how far each member has read them."""

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import new_id
from gearlink.cursors import encode_cursor
from gearlink.expiry import expire
from gearlink.personal import personal_frame
from gearlink.protocol import ThreadWasRead
from gearlink.purge import purge
from gearlink.threads import forget_reply
from gearlink.views import ThreadPage
from storage.notices import Personal
from storage.records import Conversation, Hidden, MessageIndex, Purge, Thread, ThreadRead, ThreadReply
from storage.store import Transaction
from tests.changes import putting
from tests.people import refused
from tests.rooms import Room, open_room, somebody


async def thread(room: Room, who: Actor, message: str, **query: Any) -> ThreadPage:
    return await room.threads.view(who, message, query.get("before"), query.get("after"), query.get("limit", 50))


async def forget(room: Room, root: str, sequence: int) -> None:
    async def change(tx: Transaction) -> None:
        await forget_reply(tx, room.id, root, sequence)

    await room.store.write(change)


async def chain(room: Room, sender: Actor, count: int) -> tuple[str, list[str]]:
    """A message and so many replies of the same person to it."""
    root = await room.post(sender, "root")
    return root, [await room.post(sender, str(number), thread_id=root) for number in range(count)]


async def test_a_thread_is_found_from_its_beginning_and_from_any_reply() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, replies = await chain(room, ann, 3)
    await room.post(bob, "not in it")
    for message in (root, *replies):
        page = await thread(room, bob, message)
        assert page.root is not None and page.root.id == root
        assert [item.id for item in page.items] == replies[::-1]
        assert (page.reply_count, page.unread_count, page.next) == (3, 3, None)


async def test_a_message_without_replies_is_a_thread_of_none() -> None:
    room = await open_room(1)
    page = await thread(room, room.people[0], await room.post(room.people[0]))
    assert (page.reply_count, page.unread_count, page.items, page.next) == (0, 0, [], None)


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
async def test_pages_of_a_thread_go_both_ways(limit: int) -> None:
    room = await open_room(1)
    [ann] = room.people
    root, replies = await chain(room, ann, 5)
    for way, expected in (("before", replies[::-1]), ("after", replies)):
        found: list[str] = []
        place: int | None = 0 if way == "after" else None
        for _ in range(9):
            page = await thread(room, ann, root, limit=limit, **{way: place})
            found += [item.id for item in page.items]
            if page.next is None:
                break
            place = int(page.next)
        assert found == expected


async def test_threads_are_listed_from_the_one_that_began_last() -> None:
    room = await open_room(2)
    ann, bob = room.people
    roots = [(await chain(room, ann, number + 1))[0] for number in range(3)]
    await room.post(ann, "no thread")
    last = await room.post(bob, "late", thread_id=roots[0])
    found, cursor = [], None
    for _ in range(9):
        page = await room.threads.threads(bob, room.id, 2, cursor)
        found += page.items
        if (cursor := page.next) is None:
            break
    assert [each.root.id for each in found] == roots[::-1]
    assert [(each.reply_count, each.unread_count) for each in found] == [(3, 3), (2, 2), (2, 1)]
    assert found[-1].last_reply is not None and found[-1].last_reply.id == last
    for wrong in ("x", encode_cursor("a"), encode_cursor("-1"), encode_cursor(str(2**64)), encode_cursor("1", "2")):
        with refused("invalid-request"):
            await room.threads.threads(bob, room.id, 2, wrong)


async def test_a_thread_is_read_by_its_own_mark_and_by_that_of_the_conversation() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, replies = await chain(room, ann, 4)  # numbers 2 to 5
    own = await room.post(bob, "mine", thread_id=root)  # number 6
    assert (await thread(room, bob, root)).unread_count == 4
    await room.threads.mark_read(bob, root, 2)
    assert (await thread(room, bob, root)).unread_count == 3
    await room.threads.mark_read(bob, replies[0], 4)
    assert (await thread(room, bob, own)).unread_count == 1
    await room.threads.mark_read(bob, root, 3)
    assert (await thread(room, bob, root)).unread_count == 1, "a mark never moves backwards"
    await room.change_member(bob, read_sequence=5)
    assert (await thread(room, bob, root)).unread_count == 0
    assert (await thread(room, ann, root)).unread_count == 1


async def test_a_mark_is_told_to_ones_other_devices_if_it_moved() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, replies = await chain(room, ann, 2)
    for sequence in (2, 2, 1, limits.SEQUENCE_MAX, 3):
        await room.threads.mark_read(bob, replies[1], sequence)
    told = [notice for notice in room.store.notices if isinstance(notice, Personal)]
    marks = [ThreadRead(root, bob.user_id, sequence) for sequence in (2, 3)]
    assert told == [Personal((bob.user_id,), mark, but_device_id=bob.device_id) for mark in marks]
    assert personal_frame(told[0].subject, gone=False) == ThreadWasRead(message_id=root, sequence_number=2)
    assert room.store.all(ThreadRead) == [marks[1]]


async def test_a_message_without_replies_takes_no_mark() -> None:
    room = await open_room(1)
    message = await room.post(room.people[0])
    await room.threads.mark_read(room.people[0], message, 1)
    assert room.store.all(ThreadRead) == []


async def test_a_reply_that_is_gone_is_neither_counted_nor_shown() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, replies = await chain(room, ann, 3)
    for _ in range(2):
        await forget(room, root, 4)
    page = await thread(room, bob, root)
    assert (page.reply_count, page.unread_count, len(page.items)) == (2, 2, 2)
    [line] = (await room.threads.threads(bob, room.id, 50, None)).items
    assert line.last_reply is not None and line.last_reply.id == replies[1]
    for sequence in (2, 3):
        await forget(room, root, sequence)
    assert (await room.threads.threads(bob, room.id, 50, None)).items == []
    assert room.store.all(Thread) == []
    await room.post(ann, "again", thread_id=root)
    assert (await thread(room, bob, root)).reply_count == 1


async def test_a_thread_outlives_the_message_that_it_began_with() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, [reply] = await chain(room, ann, 1)
    await room.bury(root)
    page = await thread(room, bob, root)
    assert page.root is not None and page.root.content is None and page.reply_count == 1
    assert len((await room.threads.threads(bob, room.id, 50, None)).items) == 1
    await room.rewrite(root, expires_at=room.clock.now())
    with refused("not-found"):
        await thread(room, bob, root)
    assert (await room.threads.threads(bob, room.id, 50, None)).items == []

    async def remove(tx: Transaction) -> None:
        tx.delete(MessageIndex, root)

    await room.store.write(remove)
    second = await room.post(ann, "still here", thread_id=root)
    page = await thread(room, bob, reply)
    assert page.root is None
    assert (page.reply_count, page.unread_count, [item.id for item in page.items]) == (2, 2, [second, reply])
    await forget(room, root, 2)
    assert (await thread(room, bob, second)).reply_count == 1


async def test_a_thread_whose_beginning_has_expired_is_erased_with_its_conversation() -> None:
    room = await open_room(1, type="group")
    [ann] = room.people
    root = await room.post(ann, "root", expires_at=room.clock.now() + 1000)
    reply = await room.post(ann, "reply", thread_id=root)
    await room.threads.mark_read(ann, reply, 2)
    room.clock.advance(seconds=1)
    await expire(room.store, room.clock, room.id, [1])
    assert len(room.store.all(ThreadReply)) == len(room.store.all(ThreadRead)) == 1

    async def end(tx: Transaction) -> None:
        tx.delete(Conversation, room.id)
        tx.put(Purge(room.id))

    await room.store.write(end)
    await purge(room.store, room.clock)
    assert room.store.all(ThreadReply) == room.store.all(ThreadRead) == []


async def test_what_somebody_hid_or_came_too_late_for_is_in_no_thread_of_theirs() -> None:
    room = await open_room(3)
    ann, bob, late = room.people
    root, replies = await chain(room, ann, 3)
    await room.store.write(putting(Hidden(room.id, bob.user_id, 3, replies[1], 1)))
    await room.change_member(bob, hidden_at=1)
    page = await thread(room, bob, root)
    assert [item.id for item in page.items] == [replies[2], replies[0]]
    assert page.unread_count == 2
    await room.change_member(late, joined_sequence=3)
    page = await thread(room, late, replies[2])
    assert page.root is None and [item.id for item in page.items] == [replies[2]]
    assert (page.reply_count, page.unread_count) == (1, 1)
    assert (await thread(room, late, replies[2], limit=1)).next is None
    assert (await room.threads.threads(late, room.id, 50, None)).items == []
    with refused("not-found"):
        await thread(room, late, root)
    await room.change_member(late, sees_history=True)
    page = await thread(room, late, root)
    assert (page.reply_count, page.unread_count, len(page.items)) == (3, 1, 3), "old replies are no news to them"


async def test_strangers_find_no_thread() -> None:
    room = await open_room(1)
    root, _replies = await chain(room, room.people[0], 1)
    stranger = somebody()
    for message in (root, new_id()):
        with refused("not-found"):
            await thread(room, stranger, message)
        with refused("not-found"):
            await room.threads.mark_read(stranger, message, 2)
    with refused("not-found"):
        await room.threads.threads(stranger, room.id, 50, None)


async def test_unread_replies_are_counted_up_to_the_limit() -> None:
    room = await open_room(2)
    ann, bob = room.people
    root, _replies = await chain(room, ann, 1)
    rows = [ThreadReply(root, 10 + number, ann.user_id) for number in range(limits.UNREAD_COUNT_MAX + 5)]
    await room.store.write(putting(*rows))
    assert (await thread(room, bob, root)).unread_count == limits.UNREAD_COUNT_MAX


@given(
    st.lists(st.one_of(st.tuples(st.just("reply"), st.integers(0, 2)), st.tuples(st.just("gone"), st.integers(2, 20))))
)
def test_the_count_and_the_last_reply_are_those_of_the_rows(steps: list[tuple[str, int]]) -> None:
    async def story() -> None:
        room = await open_room(3)
        root = await room.post(room.people[0])
        for what, number in steps:
            if what == "reply":
                await room.post(room.people[number], thread_id=root)
            else:
                await forget(room, root, number)
            rows, threads = room.store.all(ThreadReply), room.store.all(Thread)
            expected = [Thread(room.id, 1, root, len(rows), rows[-1].sequence)] if rows else []
            assert threads == expected

    trio.run(story)
