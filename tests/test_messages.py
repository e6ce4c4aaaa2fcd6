"""Stories of sending and reading back, on fakes: what a message may carry, what hangs on it, who sees what of it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from config import limits
from gearlink import counting
from gearlink.accounts import Actor
from gearlink.calls import MessageForm, SentMessage
from gearlink.clock import new_id
from gearlink.expiry import expire
from gearlink.protocol import PollForm
from gearlink.rights import DEFAULT_SETTINGS
from gearlink.views import MessageView
from storage.events import ConversationSettings, ConversationUpdated, Message
from storage.notices import Appended
from storage.records import (
    Conversation,
    Due,
    Head,
    LogEntry,
    Member,
    Mention,
    MessageIndex,
    Record,
    Sent,
    Thread,
    ThreadReply,
)
from storage.store import Transaction
from tests.changes import putting
from tests.people import refused
from tests.rooms import Room, open_room, somebody


def form(content: str = "hello", temp_id: str = "", **more: Any) -> MessageForm:
    return MessageForm(temp_id=temp_id or new_id(), content=content, **more)


async def say(room: Room, person: Actor, content: str = "hello", **more: Any) -> SentMessage:
    return await room.messages.send(person, room.id, form(content, **more))


async def refuse(room: Room, person: Actor, code: str, **more: Any) -> str:
    """What the refusal of this message says is wrong; nothing may have been stored."""
    writes = room.store.writes
    with refused(code) as refusal:
        await say(room, person, **more)
    assert room.store.writes == writes
    return (refusal.value.errors or [{"path": ""}])[0]["path"]


async def happen(room: Room, count: int = 1) -> None:
    """So many system events."""

    async def change(tx: Transaction) -> None:
        for _ in range(count):
            await tx.append(room.id, ConversationUpdated(new_id(), room.people[0].user_id, room.clock.now(), "n", ""))

    await room.store.write(change)


async def beside(room: Room, person: Actor) -> Room:
    """Another conversation on the same server, of theirs alone."""
    other = Room([person])
    other.store, other.clock = room.store, room.clock
    other.restart()
    await room.store.write(putting(Conversation(other.id, "group", "server", "", "", person.user_id, 1, 1, 1, 1)))
    await other.admit(person, "owner")
    return other


async def texts(room: Room, person: Actor, **query: Any) -> list[str | None]:
    page = await room.messages.page(person, room.id, query.get("before"), query.get("after"), query.get("limit", 50))
    return [item.content for item in page.items]


async def read_all(room: Room, person: Actor, limit: int, *, forward: bool) -> list[MessageView]:
    """The whole history, page by page."""
    found: list[MessageView] = []
    at: int | None = 0 if forward else None
    for _page in range(200):
        page = await room.messages.page(person, room.id, None if forward else at, at if forward else None, limit)
        assert len(page.items) <= limit
        found += page.items
        if page.next is None:
            return found
        at = int(page.next)
    raise AssertionError("it never ends")


async def member(room: Room, person: Actor) -> Member:
    found = await room.store.get(Member, room.id, person.user_id)
    assert found is not None
    return found


async def unread(room: Room, person: Actor) -> int:
    head = await room.store.get(Head, room.id) or Head(room.id, 0, 0, 0)
    return await counting.unread(room.store, await member(room, person), head, room.clock.now())


async def mentions(room: Room, person: Actor) -> int:
    return await counting.mentions(room.store, await member(room, person), room.clock.now())


# --- the plain ones --------------------------------------------------------------------------------------------------


async def test_a_plain_text_stores_four_records_and_reads_nothing_that_it_does_not_need() -> None:
    room = await open_room()
    changed: list[list[type[Record]]] = []
    read: list[type[Record]] = []
    run = room.store._run

    def spying(change: Any, tx: Any) -> Any:
        get, scan = tx.get, tx.scan

        async def noted_get(kind: type[Record], *key: Any) -> Any:
            read.append(kind)
            return await get(kind, *key)

        async def noted_scan(kind: type[Record], *prefix: Any, **bounds: Any) -> Any:
            read.append(kind)
            return await scan(kind, *prefix, **bounds)

        tx.get, tx.scan = noted_get, noted_scan
        value = run(change, tx)
        changed.append(list(tx.changed))
        return value

    room.store._run = spying  # type: ignore[method-assign]
    await say(room, room.people[0])
    assert [sorted(kind.__name__ for kind in kinds) for kinds in changed] == [
        ["Head", "LogEntry", "MessageIndex", "Sent"]
    ]
    assert sorted(kind.__name__ for kind in read) == ["Conversation", "Head", "Member", "Sent"]


async def test_a_repeated_send_answers_the_same_whatever_it_says_by_then() -> None:
    room = await open_room()
    ann = room.people[0]
    first = await room.messages.send(ann, room.id, form("one", "t-1"))
    again = await room.messages.send(ann, room.id, form("two", "t-1", mentions=["all"], kind="image"))
    assert again == first
    assert len(room.store.all(LogEntry)) == len(room.store.all(Sent)) == 1


@pytest.mark.parametrize("ending", ["expired", "removed", "left", "dissolved"])
async def test_a_repeated_send_is_acknowledged_when_its_message_is_out_of_sight(ending: str) -> None:
    room = await open_room()
    bob = room.people[1]
    first = await room.messages.send(bob, room.id, form("canary", "t-1", expires_in_seconds=60))
    if ending == "expired":
        room.clock.advance(minutes=1)
    elif ending == "removed":
        room.clock.advance(minutes=1)
        await expire(room.store, room.clock, room.id, [1])
    else:

        async def change(tx: Transaction) -> None:
            tx.delete(Member, room.id, bob.user_id)
            if ending == "dissolved":
                tx.delete(LogEntry, room.id, 1)

        await room.store.write(change)
    again = await room.messages.send(bob, room.id, form("canary", "t-1", expires_in_seconds=60))
    assert again.content is None
    for name in (
        "message_id",
        "id",
        "conversation_id",
        "sequence_number",
        "created_at",
        "temp_id",
        "sender_id",
        "kind",
    ):
        assert getattr(again, name) == getattr(first, name)
    assert len(room.store.all(Sent)) == 1


async def test_a_send_that_is_repeated_after_coming_back_shows_nothing_of_the_time_between() -> None:
    room = await open_room()
    ann, bob = room.people[:2]
    first = await room.messages.send(bob, room.id, form("one", "t-1"))
    await room.reactions.react(ann, first.message_id, "👍", added=True)
    await room.change_member(bob, joined_sequence=first.sequence_number + 1)
    again = await room.messages.send(bob, room.id, form("one", "t-1"))
    assert (again.message_id, again.content, again.reactions) == (first.message_id, None, [])


async def test_plain_content_is_refused_where_it_has_to_be_encrypted() -> None:
    room = await open_room()
    await room.change(encryption="e2ee")
    assert await refuse(room, room.people[0], "must-be-encrypted") == ""


async def test_every_kind_is_stored_and_shown_as_it_was_written() -> None:
    room = await open_room()
    ann = room.people[0]
    place = '{"latitude": 52.5, "longitude":13.4}'
    for kind, content in [
        *((kind, "look") for kind in ("text", "image", "video", "audio", "voice", "file")),
        ("location", place),
        ("contact", '{"name": "Bob", "phones": ["+15551230002"]}'),
    ]:
        sent = await say(room, ann, content, kind=kind)
        assert (sent.kind, sent.content, sent.poll) == (kind, content, UNSET)
    assert await refuse(room, ann, "invalid-request", content="here", kind="location") == "content"
    assert await refuse(room, ann, "invalid-request", media_ids=[new_id()]) == "mediaIds"


async def test_a_poll_opens_without_votes_and_is_due_to_close() -> None:
    room = await open_room()
    ann, bob = room.people[:2]
    asked = PollForm(options=["tea", "coffee"], multiple=True, anonymous=True, closes_in_seconds=60)
    sent = await say(room, ann, "What?", kind="poll", poll=asked)
    poll = (await room.messages.view(bob, sent.id)).poll
    assert poll is not UNSET and [(each.text, each.count) for each in poll.options] == [("tea", 0), ("coffee", 0)]
    assert (poll.multiple, poll.anonymous, poll.voters, poll.closed_at, poll.my_options) == (True, True, 0, None, [])
    assert room.store.all(Due) == [Due(room.clock.now() + 60_000, "close-poll", sent.id, 0)]
    await say(room, ann, "And?", kind="poll", poll=PollForm(options=["a", "b"]))
    assert len(room.store.all(Due)) == 1


# --- mentions --------------------------------------------------------------------------------------------------------


async def test_mentions_are_found_by_those_whom_they_name_and_counted_until_they_are_read() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    sent = await say(room, ann, "hey", mentions=[bob.user_id, bob.user_id])
    assert sent.mentions == [bob.user_id]
    await say(room, ann, "all of you", mentions=["all"])
    await say(room, ann, "you above all", mentions=["all", bob.user_id])
    assert [await mentions(room, person) for person in (ann, bob, cem)] == [0, 3, 2]
    await room.change_member(bob, read_sequence=2)
    await room.change_member(cem, joined_sequence=3)
    assert [await mentions(room, person) for person in (ann, bob, cem)] == [0, 1, 0]


async def test_only_members_can_be_mentioned_and_everybody_only_by_those_who_may() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    stranger = somebody()
    path = await refuse(room, ann, "invalid-request", mentions=[bob.user_id, stranger.user_id])
    assert path == "mentions[1]"
    await refuse(room, bob, "forbidden", mentions=["all"])
    await room.change(settings=ConversationSettings(mention_all="everyone"))
    await say(room, bob, mentions=["all"])
    await room.change(settings=ConversationSettings(mention_all="owners"))
    await room.change_member(cem, role="admin")
    await refuse(room, cem, "forbidden", mentions=["all"])
    await say(room, ann, mentions=["all"])


async def test_between_two_there_is_no_everybody() -> None:
    room = await open_room(2, type="direct")
    await refuse(room, room.people[0], "forbidden", mentions=["all"])
    assert (await say(room, room.people[0], mentions=[room.people[1].user_id])).mentions == [room.people[1].user_id]


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_a_reply_carries_the_short_form_of_what_it_answers_on_every_way() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    question = await say(room, ann, "q" * 500)
    reply = await say(room, bob, "because", reply_to_id=question.id)
    notice = room.store.notices[-1]
    assert isinstance(notice, Appended) and notice.subject == await room.entry(question.id)
    page = await room.messages.page(cem, room.id, None, None, 10)
    for view in (reply, await room.messages.view(cem, reply.id), page.items[0]):
        assert (view.reply_to_id, view.thread_id) == (question.id, question.id)
        quote = view.reply_to
        assert quote is not UNSET and quote is not None
        assert (quote.id, quote.sender_id, quote.kind, quote.sequence_number) == (question.id, ann.user_id, "text", 1)
        assert quote.content == "q" * limits.QUOTE_CHARS_MAX
    await room.amendments.delete(ann, question.id, for_everyone=True)
    quote = (await room.messages.view(cem, reply.id)).reply_to
    assert quote is not UNSET and quote is not None and (quote.content, quote.deleted_at is UNSET) == (None, False)


async def test_a_reply_to_a_reply_belongs_to_the_same_thread() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    root = await say(room, ann, "root")
    first = await say(room, bob, "first", reply_to_id=root.id)
    second = await say(room, ann, "second", reply_to_id=first.id)
    assert (second.reply_to_id, second.thread_id) == (first.id, root.id)
    assert [(each.thread_id, each.sequence, each.sender_id) for each in room.store.all(ThreadReply)] == [
        (root.id, 2, bob.user_id),
        (root.id, 3, ann.user_id),
    ]
    assert room.store.all(Thread) == [Thread(room.id, 1, root.id, 2, 3)]


async def test_a_reply_is_refused_to_what_its_writer_cannot_see() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    other = await beside(room, ann)
    old = await say(room, ann, "old")
    await room.change_member(cem, joined_sequence=1)
    hidden = await say(room, ann, "hidden")
    await room.amendments.delete(bob, hidden.id, for_everyone=False)
    gone = await say(room, ann, "gone", expires_in_seconds=1)
    room.clock.advance(seconds=1)
    elsewhere = await say(other, ann, "elsewhere")
    for person, target in [(cem, old), (bob, hidden), (ann, gone), (ann, elsewhere)]:
        assert await refuse(room, person, "invalid-request", reply_to_id=target.id) == "replyToId"
    assert await refuse(room, ann, "invalid-request", reply_to_id=new_id()) == "replyToId"
    await room.change_member(cem, sees_history=True)
    assert (await say(room, cem, reply_to_id=old.id)).thread_id == old.id


# --- forwarding ------------------------------------------------------------------------------------------------------


async def test_each_time_it_is_handed_on_a_message_says_so() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message = await say(room, ann, "psst")
    for times in (1, 2, 3):
        message = await say(room, bob, "psst", forwarded_from_id=message.id)
        assert (message.forwarded, message.reply_to_id) == (times, UNSET)


async def test_only_what_one_can_read_and_is_still_there_can_be_forwarded() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    theirs = await room.post(ann, "elsewhere")
    for code, change in [("hidden", False), ("deleted", True)]:
        target = await say(room, bob, code)
        await room.amendments.delete(bob, target.id, for_everyone=change)
        assert await refuse(room, bob, "invalid-request", forwarded_from_id=target.id) == "forwardedFromId"
    gone = await say(room, ann, "gone", expires_in_seconds=1)
    room.clock.advance(seconds=1)
    for target_id in (gone.id, new_id()):
        assert await refuse(room, ann, "invalid-request", forwarded_from_id=target_id) == "forwardedFromId"
    await room.change_member(cem, joined_sequence=1)
    assert await refuse(room, cem, "invalid-request", forwarded_from_id=theirs) == "forwardedFromId"


async def test_a_message_can_be_handed_on_into_another_conversation_by_those_who_read_both() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    source = await say(room, ann, "psst")
    other = await beside(room, ann)
    assert (await say(other, ann, "psst", forwarded_from_id=source.id)).forwarded == 1
    inside = await say(other, ann, "secret")
    assert await refuse(room, bob, "invalid-request", forwarded_from_id=inside.id) == "forwardedFromId"


# --- disappearing ----------------------------------------------------------------------------------------------------


async def test_a_message_disappears_by_its_own_timer_or_else_by_the_conversations() -> None:
    room = await open_room()
    ann = room.people[0]
    now = room.clock.now()
    stays = await say(room, ann)
    own = await say(room, ann, expires_in_seconds=5)
    await room.change(settings=ConversationSettings(disappearing_seconds=60))
    usual, shorter = await say(room, ann), await say(room, ann, expires_in_seconds=7, mentions=[ann.user_id])
    assert stays.expires_at is UNSET
    assert [await expires_at(room, each.id) for each in (own, usual, shorter)] == [
        now + 5_000,
        now + 60_000,
        now + 7_000,
    ]
    assert sorted(room.store.all(Due), key=lambda due: due.number) == [
        Due(now + 5_000, "expire", room.id, 2),
        Due(now + 60_000, "expire", room.id, 3),
        Due(now + 7_000, "expire", room.id, 4),
    ]
    assert [each.expires_at for each in room.store.all(Mention)] == [now + 7_000]


async def expires_at(room: Room, message_id: str) -> int:
    return (await room.message(message_id)).expires_at


async def test_what_has_disappeared_is_shown_nowhere_from_that_moment_on() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    gone = await say(room, ann, "gone", expires_in_seconds=10, mentions=[bob.user_id])
    stays = await say(room, ann, "stays", reply_to_id=gone.id)
    assert await texts(room, bob) == ["stays", "gone"]
    assert (await unread(room, bob), await mentions(room, bob)) == (2, 1)
    room.clock.advance(seconds=9.999)
    assert await texts(room, bob) == ["stays", "gone"]
    room.clock.advance(seconds=0.001)
    assert await texts(room, bob) == ["stays"] == await texts(room, bob, after=0)
    assert (await unread(room, bob), await mentions(room, bob)) == (1, 0)
    assert (await room.messages.view(bob, stays.id)).reply_to is None
    with refused("not-found"):
        await room.messages.view(bob, gone.id)


# --- on the server's behalf ------------------------------------------------------------------------------------------


async def compose(room: Room, person: Actor, asked: MessageForm, message_id: str, **more: Any) -> Any:
    async def change(tx: Transaction) -> Any:
        return await room.messages.compose(
            tx, person.user_id, person.device_id, room.id, asked, message_id, room.clock.now(), **more
        )

    return await room.store.write(change)


async def test_what_the_server_sends_for_somebody_names_no_device_and_keeps_its_temp_id() -> None:
    room = await open_room()
    ann = room.people[0]
    asked, message_id = form("later", "t-1", mentions=["all"]), new_id()
    accepted = await compose(room, ann, asked, message_id, by_server=True)
    view = await room.messages.view(ann, message_id)
    assert (view.sender_id, view.sender_device_id, view.temp_id) == (ann.user_id, None, "t-1")
    assert accepted.sent == await room.store.get(Sent, ann.device_id, room.id, "t-1")
    again = await compose(room, ann, asked, new_id(), by_server=True)
    assert again.repeated and again.sent == accepted.sent
    assert (await room.messages.send(ann, room.id, asked)).id == message_id


@pytest.mark.parametrize(
    ("person", "asked", "code"),
    [
        (3, form(), "not-found"),
        (1, form(mentions=["all"]), "forbidden"),
        (1, form(reply_to_id=new_id()), "invalid-request"),
        (1, form(forwarded_from_id=new_id()), "invalid-request"),
    ],
)
async def test_the_rules_are_the_same_for_a_check_for_a_change_and_for_a_send(
    person: int, asked: MessageForm, code: str
) -> None:
    room = await open_room()
    actor = [*room.people, somebody()][person]
    with refused(code):
        await room.messages.check(room.store, actor.user_id, room.id, asked)
    with refused(code):
        await compose(room, actor, asked, new_id())
    with refused(code):
        await room.messages.send(actor, room.id, asked)
    assert room.store.all(LogEntry) == []


async def test_those_who_may_not_write_are_refused() -> None:
    room = await open_room(type="channel")
    await refuse(room, room.people[1], "forbidden")
    await refuse(room, somebody(), "not-found")
    assert DEFAULT_SETTINGS["channel"].write == "admins"
    pair = await open_room(2, type="direct")
    await pair.change(is_blocked=True)
    for person in pair.people:
        await refuse(pair, person, "refused-by-privacy")


# --- reading back ----------------------------------------------------------------------------------------------------


async def test_newcomers_read_back_as_far_as_they_may_see() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    first = await say(room, ann, "before")
    await room.change_member(bob, joined_sequence=1)
    await room.change_member(cem, joined_sequence=1, sees_history=True)
    await say(room, ann, "after")
    assert await texts(room, bob) == ["after"] == await texts(room, bob, after=0)
    assert await texts(room, cem) == ["after", "before"]
    with refused("not-found"):
        await room.messages.view(bob, first.id)
    assert (await room.messages.view(cem, first.id)).content == "before"
    with refused("not-found"):
        await room.messages.page(somebody(), room.id, None, None, 10)


@given(
    st.lists(st.sampled_from("mhxsn"), max_size=60),
    st.integers(1, 12),
    st.integers(0, 60),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_pages_together_are_the_history_that_is_visible(
    kinds: list[str], limit: int, horizon: int, forward: bool
) -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    expected: list[int] = []
    hides = []
    for sequence, kind in enumerate(kinds, start=1):
        if kind == "s":
            await happen(room)
        else:
            sent = await say(room, ann, kind, expires_in_seconds=1 if kind == "x" else None)
            if kind == "h":
                hides.append(sent.id)
        if kind not in "hx" and sequence > horizon:
            expected.append(sequence)
    for message_id in hides:
        await room.amendments.delete(bob, message_id, for_everyone=False)
    await room.change_member(bob, joined_sequence=horizon)
    room.clock.advance(seconds=1)
    found = [view.sequence_number for view in await read_all(room, bob, limit, forward=forward)]
    assert found == (expected if forward else expected[::-1])


async def test_a_page_that_finds_little_to_show_ends_after_a_few_looks_and_says_where_to_go_on() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    await say(room, ann, "first")
    for number in range(3 * limits.HISTORY_STEPS_MAX):
        hidden = await say(room, ann, str(number))
        await room.amendments.delete(bob, hidden.id, for_everyone=False)
    room.store.reads.clear()
    page = await room.messages.page(bob, room.id, None, None, 1)
    assert page.items == [] and page.next is not None
    assert room.store.reads.count(LogEntry) == limits.HISTORY_STEPS_MAX
    assert [view.content for view in await read_all(room, bob, 1, forward=False)] == ["first"]
    assert [view.content for view in await read_all(room, bob, 1, forward=True)] == ["first"]


async def test_who_never_hid_a_message_is_not_asked_what_they_hid() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    await say(room, ann)
    room.store.reads.clear()
    await texts(room, bob)
    await unread(room, bob)
    assert sorted({kind.__name__ for kind in room.store.reads}) == ["Conversation", "Head", "LogEntry", "Member"]


# --- counting --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("omhxds"), max_size=40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
async def test_unread_are_the_messages_of_others_that_are_still_there(kinds: list[str], read: int) -> None:
    """o: one's own, m: of others, h: hidden by oneself, x: disappeared, d: deleted, s: no message."""
    room = await open_room()
    ann, bob, _cem = room.people
    last, deleted, hidden = len(kinds), [], []
    expected = named = 0
    for sequence, kind in enumerate(kinds, start=1):
        if kind == "s":
            await happen(room)
            continue
        sender = bob if kind == "o" else ann
        sent = await say(room, sender, mentions=[bob.user_id], expires_in_seconds=1 if kind == "x" else None)
        if kind == "h":
            hidden.append(sent.id)
        elif kind == "d":
            deleted.append(sent.id)
        elif kind == "m" and sequence > read:
            expected += 1
            named += 1
    for message_id in deleted:
        await room.amendments.delete(ann, message_id, for_everyone=True)
    for message_id in hidden:
        await room.amendments.delete(bob, message_id, for_everyone=False)
    await room.change_member(bob, read_sequence=min(read, last))
    room.clock.advance(seconds=1)
    assert (await unread(room, bob), await mentions(room, bob)) == (expected, named)


async def test_unread_stops_at_its_cap_and_looks_at_no_more_than_it_needs() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message = Message(new_id(), ann.user_id, 1, ann.device_id, "text", None, "t")

    async def change(tx: Transaction) -> None:
        for sequence in range(1, 1501):
            tx.put(LogEntry(room.id, sequence, message))
            tx.put(Mention(room.id, bob.user_id, sequence, ann.user_id))
        tx.put(Head(room.id, 1500, 1500, 1))

    await room.store.write(change)
    room.store.reads.clear()
    assert (await unread(room, bob), await mentions(room, bob)) == (limits.UNREAD_COUNT_MAX, limits.UNREAD_COUNT_MAX)
    assert room.store.reads.count(LogEntry) == 5
    await room.change_member(bob, read_sequence=1400)
    assert (await unread(room, bob), await mentions(room, bob)) == (100, 100)


async def test_what_was_there_before_somebody_came_is_not_unread_even_if_they_may_see_it() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    await say(room, ann, mentions=["all"])
    await room.change_member(bob, joined_sequence=1, sees_history=True)
    assert (await unread(room, bob), await mentions(room, bob)) == (0, 0)


async def test_a_message_can_be_found_by_its_id() -> None:
    room = await open_room()
    sent = await say(room, room.people[0])
    assert room.store.all(MessageIndex) == [MessageIndex(sent.id, room.id, 1)]
