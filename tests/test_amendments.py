"""Stories of what becomes of messages, on fakes: edits, deletions, pins, and those that disappear."""

from typing import Any

import pytest
from msgspec import UNSET

from config import limits
from config.settings import with_values
from gearlink.accounts import Actor
from gearlink.amendments import forget
from gearlink.calls import EditForm, MessageForm
from gearlink.clock import new_id
from gearlink.expiry import expire
from gearlink.pressure import Load
from gearlink.protocol import PollForm
from gearlink.views import MessageView, RevisionView
from storage.events import (
    ConversationSettings,
    ConversationUpdated,
    MessageDeleted,
    MessageEdited,
    MessagePinned,
    Plain,
    Tally,
)
from storage.notices import Appended, Personal
from storage.records import (
    Conversation,
    Due,
    Hidden,
    LogEntry,
    Member,
    Mention,
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
from tests.people import refused
from tests.rooms import Room, open_room, somebody

HOUR = 3600.0


async def say(room: Room, person: Actor, content: str = "hello", **more: Any) -> str:
    form = MessageForm(temp_id=new_id(), content=content, **more)
    return (await room.messages.send(person, room.id, form)).id


async def edit(room: Room, person: Actor, message_id: str, content: str, **more: Any) -> MessageView:
    return await room.amendments.edit(person, message_id, EditForm(content=content, **more))


async def unsaid(room: Room, person: Actor, message_id: str, *, for_everyone: bool = True) -> None:
    await room.amendments.delete(person, message_id, for_everyone=for_everyone)


def heard(room: Room, kind: type[Any]) -> list[Appended]:
    """What the room was told of this kind."""
    told = [notice for notice in room.store.notices if isinstance(notice, Appended)]
    return [notice for notice in told if isinstance(notice.entry.event, kind)]


async def revisions(room: Room, person: Actor, message_id: str, limit: int = 200) -> list[RevisionView]:
    found: list[RevisionView] = []
    cursor = None
    while True:
        page = await room.amendments.revisions(person, message_id, limit, cursor)
        found += page.items
        if page.next is None:
            return found
        cursor = page.next


async def pinned(room: Room, person: Actor, limit: int = 200) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await room.amendments.pins(person, room.id, limit, cursor)
        found += [view.id for view in page.items]
        if page.next is None:
            return found
        cursor = page.next


async def pin_count(room: Room) -> int:
    conversation = await room.store.get(Conversation, room.id)
    assert conversation is not None and conversation.pin_count == len(room.store.all(Pin))
    return conversation.pin_count


async def is_unchanged(room: Room, code: str, call: Any) -> None:
    """The call is refused so, and leaves nothing."""
    writes = room.store.writes
    with refused(code):
        await call
    assert room.store.writes == writes


# --- edits -----------------------------------------------------------------------------------------------------------


async def test_an_edit_is_told_with_the_message_and_keeps_what_it_said_before() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message_id = await say(room, ann, "one")
    written_at = (await room.messages.view(bob, message_id)).created_at
    room.clock.advance(minutes=1)
    view = await edit(room, ann, message_id, "two")
    [notice] = heard(room, MessageEdited)
    assert notice.entry.sequence == 2 and notice.subject == await room.entry(message_id)
    assert (view.content, view.edited_at is UNSET, view.sequence_number) == ("two", False, 1)
    assert await room.messages.view(ann, message_id) == view
    edited_at = view.edited_at
    room.clock.advance(minutes=1)
    await edit(room, ann, message_id, "three")
    for person in (ann, bob):
        found = await revisions(room, person, message_id, limit=1)
        assert [(each.number, each.content, each.written_at) for each in found] == [
            (1, "one", written_at),
            (2, "two", edited_at),
        ]
    assert [item.content for item in (await room.messages.page(bob, room.id, None, None, 9)).items] == ["three"]


async def test_an_edit_that_changes_nothing_is_not_news() -> None:
    room = await open_room(edit_hours=1)
    ann, bob, _cem = room.people
    message_id = await say(room, ann, "one", mentions=[bob.user_id])
    for mentions in (None, [bob.user_id], [bob.user_id, bob.user_id]):
        assert (await edit(room, ann, message_id, "one", mentions=mentions)).edited_at is UNSET
    room.clock.advance(seconds=HOUR)
    await edit(room, ann, message_id, "one")
    assert heard(room, MessageEdited) == [] == room.store.all(Revision)


async def test_only_the_author_edits_and_strangers_see_no_message() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    message_id = await say(room, bob, "one")
    await is_unchanged(room, "forbidden", edit(room, ann, message_id, "two"))
    await is_unchanged(room, "not-found", edit(room, somebody(), message_id, "two"))
    await is_unchanged(room, "not-found", edit(room, ann, new_id(), "two"))
    await room.change_member(cem, joined_sequence=1)
    await is_unchanged(room, "not-found", edit(room, cem, message_id, "two"))
    await room.change(settings=ConversationSettings(write="admins"))
    await is_unchanged(room, "forbidden", edit(room, bob, message_id, "two"))


async def test_an_edit_comes_too_late_when_its_time_is_over_unless_there_is_no_end() -> None:
    room = await open_room(edit_hours=48)
    ann = room.people[0]
    message_id = await say(room, ann, "one")
    room.clock.advance(seconds=48 * HOUR - 1)
    await edit(room, ann, message_id, "two")
    room.clock.advance(seconds=1)
    await is_unchanged(room, "too-late", edit(room, ann, message_id, "three"))
    room.amendments.reload(with_values(room.settings, {"limits.edit_hours": 0}))
    room.clock.advance(days=1000)
    assert (await edit(room, ann, message_id, "three")).content == "three"


@pytest.mark.parametrize(
    ("kind", "content", "code"),
    [
        ("location", '{"latitude": 1, "longitude": 2}', "invalid-request"),
        ("contact", '{"name": "Bob"}', "invalid-request"),
        ("poll", "Tea?", "invalid-request"),
        *((kind, "look", "") for kind in ("text", "image", "video", "audio", "voice", "file")),
    ],
)
async def test_texts_and_captions_can_be_edited_and_nothing_else(kind: str, content: str, code: str) -> None:
    room = await open_room()
    ann = room.people[0]
    poll = PollForm(options=["yes", "no"]) if kind == "poll" else None
    message_id = await say(room, ann, content, kind=kind, poll=poll)
    if code:
        await is_unchanged(room, code, edit(room, ann, message_id, "better"))
    else:
        assert (await edit(room, ann, message_id, "better")).content == "better"


async def test_an_edit_is_refused_for_what_is_gone_too_long_or_has_to_be_encrypted() -> None:
    room = await open_room()
    ann, _bob, _cem = room.people
    message_id = await say(room, ann, "one")
    deleted, gone = await say(room, ann, "two"), await say(room, ann, "three", expires_in_seconds=1)
    await unsaid(room, ann, deleted)
    room.clock.advance(seconds=1)
    await is_unchanged(room, "message-deleted", edit(room, ann, deleted, "four"))
    await is_unchanged(room, "not-found", edit(room, ann, gone, "four"))
    await is_unchanged(room, "invalid-request", edit(room, ann, message_id, "😀" * (limits.CONTENT_BYTES_MAX // 4 + 1)))
    await room.change(encryption="e2ee")
    await is_unchanged(room, "must-be-encrypted", edit(room, ann, message_id, "four"))
    pair = await open_room(2, type="direct")
    message_id = await say(pair, pair.people[0])
    await pair.change(is_blocked=True)
    await is_unchanged(pair, "refused-by-privacy", edit(pair, pair.people[0], message_id, "four"))


async def test_what_is_done_to_messages_counts_like_a_message_and_edits_are_shed_with_them() -> None:
    room = await open_room(messages_per_second=1, messages_burst=2)
    ann = room.people[0]
    message_id = await room.post(ann)
    await edit(room, ann, message_id, "two")
    await room.amendments.pin(ann, message_id, pinned=True)
    await is_unchanged(room, "rate-limited", edit(room, ann, message_id, "three"))
    await is_unchanged(room, "rate-limited", room.amendments.pin(ann, message_id, pinned=False))
    await is_unchanged(room, "rate-limited", unsaid(room, ann, message_id))
    await is_unchanged(room, "rate-limited", unsaid(room, ann, message_id, for_everyone=False))
    room.restart()
    assert room.amendments._pressure is not None
    room.amendments._pressure.level = Load.MESSAGES
    await is_unchanged(room, "overloaded", edit(room, ann, message_id, "three"))
    await unsaid(room, ann, message_id)


async def test_an_edit_changes_whom_a_message_mentions_if_it_says_so() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    message_id = await say(room, ann, "one", mentions=[bob.user_id, "all"])

    def named() -> set[str]:
        return {each.user_id for each in room.store.all(Mention)}

    assert (await edit(room, ann, message_id, "two")).mentions == [bob.user_id, "all"]
    assert named() == {bob.user_id, room.id}
    assert (await edit(room, ann, message_id, "two", mentions=[cem.user_id])).mentions == [cem.user_id]
    assert named() == {cem.user_id}
    assert (await edit(room, ann, message_id, "three", mentions=[])).mentions is UNSET
    assert named() == set()
    await is_unchanged(room, "invalid-request", edit(room, ann, message_id, "four", mentions=[somebody().user_id]))


async def test_an_edit_may_keep_a_mention_that_could_not_be_made_any_more() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    await room.change(settings=ConversationSettings(mention_all="everyone"))
    message_id = await say(room, bob, "one", mentions=[cem.user_id, "all"])
    await room.change(settings=ConversationSettings())

    async def leave(tx: Transaction) -> None:
        tx.delete(Member, room.id, cem.user_id)

    await room.store.write(leave)
    await edit(room, bob, message_id, "two", mentions=[cem.user_id, "all", ann.user_id])
    await edit(room, bob, message_id, "three", mentions=[])
    await is_unchanged(room, "forbidden", edit(room, bob, message_id, "four", mentions=["all"]))
    await is_unchanged(room, "invalid-request", edit(room, bob, message_id, "four", mentions=[cem.user_id]))


async def test_of_very_many_edits_the_last_are_kept_under_their_numbers() -> None:
    room = await open_room()
    ann = room.people[0]
    message_id = await say(room, ann, "0")
    edits = limits.REVISIONS_MAX + 3
    for number in range(1, edits + 1):
        await edit(room, ann, message_id, str(number))
    found = await revisions(room, ann, message_id, limit=7)
    expected = [(number, str(number - 1)) for number in range(4, edits + 1)]
    assert [(each.number, each.content) for each in found] == expected
    assert len(room.store.all(Revision)) == limits.REVISIONS_MAX


async def test_revisions_are_for_those_who_may_see_the_message() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    message_id = await say(room, ann, "one")
    await edit(room, ann, message_id, "two")
    await room.change_member(cem, joined_sequence=1)
    await unsaid(room, bob, message_id, for_everyone=False)
    for person in (bob, cem, somebody()):
        with refused("not-found"):
            await room.amendments.revisions(person, message_id, 10, None)
    for cursor in ("x", "!", "AAAA", "LTE", "MSAA", "\u0664"):
        with refused("invalid-request"):
            await room.amendments.revisions(ann, message_id, 10, cursor)


# --- deletion for everyone -------------------------------------------------------------------------------------------


async def react(room: Room, message_id: str, count: int) -> None:
    """So many reactions and votes of people, as the rows that they leave."""
    rows = [Reaction(message_id, new_id(), "👍", 1) for _ in range(count)]
    await room.store.write(putting(*rows, *(Vote(message_id, new_id(), (0,), 1) for _ in range(count))))


async def test_what_was_deleted_for_everyone_leaves_a_tombstone_and_nothing_else() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    root = await say(room, bob, "root")
    poll = PollForm(options=["yes", "no"], closes_in_seconds=60)
    message_id = await say(room, ann, "canary", kind="poll", poll=poll, reply_to_id=root, mentions=["all", bob.user_id])
    await room.amendments.pin(ann, message_id, pinned=True)
    await react(room, message_id, 3)
    await room.rewrite(message_id, reactions=(Tally("👍", 3, ()),), edited_at=1, media_ids=(new_id(),))
    await room.store.write(putting(Revision(message_id, 1, Plain("canary"), 1), Untold(message_id, (), room.id)))
    room.clock.advance(seconds=1)
    await unsaid(room, ann, message_id)

    [notice] = heard(room, MessageDeleted)
    assert notice.subject == await room.entry(message_id)
    stone = await room.message(message_id)
    assert stone.content is None and stone.poll is None
    assert (stone.reactions, stone.mentions, stone.media_ids) == ((), (), ())
    assert (stone.kind, stone.reply_to_id, stone.thread_id, stone.actor_id) == ("poll", root, root, ann.user_id)
    assert (stone.deleted_at, stone.deleted_by, stone.pinned_at) == (room.clock.now(), ann.user_id, 0)
    for kind in (Revision, Reaction, Vote, Mention, Pin, ThreadReply, Thread, Untold, Due):
        assert room.store.all(kind) == []
    assert await pin_count(room) == 0
    view = await room.messages.view(bob, message_id)
    assert (view.content, view.deleted_by, view.mentions, view.poll) == (None, ann.user_id, UNSET, UNSET)
    stored = repr([entry.event for entry in room.store.all(LogEntry)])
    assert "canary" not in stored
    assert await revisions(room, bob, message_id) == []


async def test_a_second_deletion_is_fine_and_not_told() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message_id = await say(room, bob)
    await unsaid(room, bob, message_id)
    stone = await room.message(message_id)
    room.clock.advance(seconds=1)
    for person in (bob, ann):
        await unsaid(room, person, message_id)
    assert len(heard(room, MessageDeleted)) == 1
    assert await room.message(message_id) == stone


async def test_deletion_for_everyone_is_for_the_author_and_for_moderators() -> None:
    room = await open_room(4)
    ann, bob, cem, dee = room.people
    await room.change_member(dee, role="admin")
    of_bob = [await say(room, bob) for _ in range(3)]
    await is_unchanged(room, "forbidden", unsaid(room, cem, of_bob[0]))
    await is_unchanged(room, "not-found", unsaid(room, somebody(), of_bob[0]))
    for person, message_id in zip((ann, bob, dee), of_bob, strict=True):
        await unsaid(room, person, message_id)
        assert (await room.message(message_id)).deleted_by == person.user_id
    await is_unchanged(room, "forbidden", unsaid(room, cem, of_bob[0]))
    pair = await open_room(2, type="direct")
    message_id = await say(pair, pair.people[0])
    await is_unchanged(pair, "forbidden", unsaid(pair, pair.people[1], message_id))
    await pair.change(is_blocked=True)
    await unsaid(pair, pair.people[0], message_id)


async def test_an_author_may_be_too_late_to_delete_and_a_moderator_never_is() -> None:
    room = await open_room(delete_hours=1)
    ann, bob, _cem = room.people
    early, late = await say(room, bob), await say(room, bob)
    room.clock.advance(seconds=HOUR - 1)
    await unsaid(room, bob, early)
    room.clock.advance(seconds=1)
    await is_unchanged(room, "too-late", unsaid(room, bob, late))
    await unsaid(room, bob, early)
    await unsaid(room, bob, late, for_everyone=False)
    await unsaid(room, ann, late)
    forever = await open_room()
    message_id = await say(forever, forever.people[1])
    forever.clock.advance(days=5000)
    await unsaid(forever, forever.people[1], message_id)


async def test_a_popular_message_goes_at_once_and_the_rows_of_its_admirers_in_steps() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message_id, other = await say(room, ann, "canary"), await say(room, ann)
    await react(room, message_id, 3 * limits.ERASED_ROWS_MAX)
    await react(room, other, 1)
    await room.rewrite(message_id, reactions=(Tally("👍", 3 * limits.ERASED_ROWS_MAX, ()),))
    await unsaid(room, ann, message_id)
    view = await room.messages.view(bob, message_id)
    assert (view.content, view.reactions) == (None, [])
    assert len(room.store.all(Reaction)) == len(room.store.all(Vote)) == 2 * limits.ERASED_ROWS_MAX + 1
    assert room.store.all(Due) == [Due(room.clock.now(), "forget", message_id, 0)]

    async def step(tx: Transaction) -> bool:
        return await forget(tx, message_id)

    assert await room.store.write(step)
    assert len(room.store.all(Reaction)) == limits.ERASED_ROWS_MAX + 1
    await room.amendments.forget(message_id)
    assert [each.message_id for each in room.store.all(Reaction)] == [other]
    assert [each.message_id for each in room.store.all(Vote)] == [other]
    await room.amendments.forget(message_id)


# --- deletion for oneself --------------------------------------------------------------------------------------------


async def test_what_somebody_deletes_for_themselves_is_gone_for_them_alone() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    message_id = await say(room, ann, "one")
    await say(room, ann, "two")
    room.clock.advance(seconds=5)
    for _time in range(2):
        await unsaid(room, bob, message_id, for_everyone=False)
    hidden = Hidden(room.id, bob.user_id, 1, message_id, room.clock.now())
    assert room.store.all(Hidden) == [hidden]
    told = [notice for notice in room.store.notices if isinstance(notice, Personal)]
    assert told == [Personal((bob.user_id,), hidden, but_device_id=bob.device_id)]
    member = await room.store.get(Member, room.id, bob.user_id)
    assert member is not None and member.hidden_at == room.clock.now()
    assert [item.content for item in (await room.messages.page(bob, room.id, None, None, 9)).items] == ["two"]
    with refused("not-found"):
        await room.messages.view(bob, message_id)
    assert (await room.messages.view(cem, message_id)).content == "one"
    assert heard(room, MessageDeleted) == []


async def test_an_author_who_has_hidden_a_message_can_still_take_it_from_everybody() -> None:
    room = await open_room()
    _ann, bob, cem = room.people
    message_id = await say(room, bob, "one")
    await unsaid(room, bob, message_id, for_everyone=False)
    await unsaid(room, bob, message_id)
    assert (await room.messages.view(cem, message_id)).content is None


async def test_a_system_message_cannot_be_deleted_edited_or_pinned() -> None:
    room = await open_room()
    ann = room.people[0]
    event = ConversationUpdated(new_id(), ann.user_id, room.clock.now(), "name", "")

    async def change(tx: Transaction) -> None:
        await tx.append(room.id, event)

    await room.store.write(change)
    [item] = (await room.messages.page(ann, room.id, None, None, 9)).items
    for for_everyone in (True, False):
        await is_unchanged(room, "not-found", unsaid(room, ann, item.id, for_everyone=for_everyone))
    await is_unchanged(room, "not-found", edit(room, ann, item.id, "x"))
    await is_unchanged(room, "not-found", room.amendments.pin(ann, item.id, pinned=True))


# --- pins ------------------------------------------------------------------------------------------------------------


async def test_a_pin_is_an_item_of_the_history_and_told_with_its_message() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message_id = await say(room, bob, "one")
    for _time in range(2):
        await room.amendments.pin(ann, message_id, pinned=True)
    [notice] = heard(room, MessagePinned)
    assert isinstance(notice.entry.event, MessagePinned) and notice.entry.event.pinned
    assert notice.subject == await room.entry(message_id)
    assert room.store.all(Pin) == [Pin(room.id, 1, message_id, ann.user_id, room.clock.now())]
    assert (await room.messages.view(bob, message_id)).pinned_at is not UNSET
    assert await pin_count(room) == 1
    items = (await room.messages.page(bob, room.id, None, None, 9)).items
    assert [item.kind for item in items] == ["system", "text"] and '"message:pinned"' in str(items[0].content)
    for _time in range(2):
        await room.amendments.pin(ann, message_id, pinned=False)
    assert [each.entry.event.pinned for each in heard(room, MessagePinned)] == [True, False]  # type: ignore[union-attr]
    assert await pin_count(room) == 0 and (await room.messages.view(bob, message_id)).pinned_at is UNSET


async def test_pins_are_for_those_who_may_pin() -> None:
    room = await open_room()
    ann, bob, _cem = room.people
    message_id = await say(room, bob)
    await is_unchanged(room, "forbidden", room.amendments.pin(bob, message_id, pinned=True))
    await is_unchanged(room, "not-found", room.amendments.pin(somebody(), message_id, pinned=True))
    await room.amendments.pin(ann, message_id, pinned=True)
    await is_unchanged(room, "forbidden", room.amendments.pin(bob, message_id, pinned=False))
    await room.change(settings=ConversationSettings(pin="everyone"))
    await room.amendments.pin(bob, message_id, pinned=False)
    await unsaid(room, bob, message_id)
    await is_unchanged(room, "message-deleted", room.amendments.pin(bob, message_id, pinned=True))
    await room.amendments.pin(bob, message_id, pinned=False)
    pair = await open_room(2, type="direct")
    message_id = await say(pair, pair.people[0])
    await pair.amendments.pin(pair.people[1], message_id, pinned=True)
    await pair.change(is_blocked=True)
    await is_unchanged(pair, "refused-by-privacy", pair.amendments.pin(pair.people[1], message_id, pinned=False))


async def test_only_so_many_messages_are_pinned_at_a_time() -> None:
    room = await open_room()
    ann = room.people[0]
    ids = [await say(room, ann) for _ in range(limits.PINS_MAX + 1)]
    for message_id in ids[:-1]:
        await room.amendments.pin(ann, message_id, pinned=True)
    await is_unchanged(room, "too-many", room.amendments.pin(ann, ids[-1], pinned=True))
    await room.amendments.pin(ann, ids[0], pinned=True)
    await room.amendments.pin(ann, ids[0], pinned=False)
    await room.amendments.pin(ann, ids[-1], pinned=True)
    assert await pin_count(room) == limits.PINS_MAX
    assert await pinned(room, ann, limit=7) == ids[:0:-1]


async def test_the_list_of_pins_shows_each_member_what_they_may_see() -> None:
    room = await open_room()
    ann, bob, cem = room.people
    old, hidden, deleted, stays = [await say(room, ann, text) for text in ("old", "hidden", "deleted", "stays")]
    gone = await say(room, ann, "gone", expires_in_seconds=1)
    for message_id in (stays, old, hidden, deleted, gone):
        await room.amendments.pin(ann, message_id, pinned=True)
    await unsaid(room, bob, hidden, for_everyone=False)
    await unsaid(room, ann, deleted)
    await room.change_member(cem, joined_sequence=1)
    assert await pinned(room, ann) == [gone, stays, hidden, old]
    room.clock.advance(seconds=1)
    assert await pinned(room, ann) == [stays, hidden, old]
    assert await pinned(room, bob) == [stays, old]
    assert await pinned(room, cem) == [stays, hidden]
    await expire(room.store, room.clock, room.id, [5])
    assert await pinned(room, ann) == [stays, hidden, old] and await pin_count(room) == 3
    with refused("not-found"):
        await room.amendments.pins(somebody(), room.id, 10, None)
    with refused("invalid-request"):
        await room.amendments.pins(ann, room.id, 10, "nonsense")
