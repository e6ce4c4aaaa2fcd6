"""Stories of reactions: one each for a user and an emoji, counted right whatever happens."""

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import new_id
from gearlink.cursors import encode_cursor
from gearlink.reactions import _EMOJIS, normal_emoji
from gearlink.views import ReactorView
from storage.events import ReactionChanged, Tally
from storage.records import Hidden, Member, Reaction
from storage.store import Transaction
from tests.changes import putting
from tests.people import refused
from tests.rooms import Room, open_room, somebody

EMOJIS = list(_EMOJIS.values())


async def all_reactors(room: Room, actor: Actor, message: str, emoji: str | None, limit: int) -> list[ReactorView]:
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await room.reactions.reactions(actor, message, emoji, limit, cursor)
        assert len(page.items) <= limit
        found += page.items
        cursor = page.next
        pages += 1
        assert pages < 100
    return found


# --- what is an emoji -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("👍", "👍"),
        ("👍🏽", "👍🏽"),
        ("❤", "❤️"),
        ("❤️", "❤️"),
        ("1⃣", "1️⃣"),
        ("🇩🇪", "🇩🇪"),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🏴󠁧󠁢󠁳󠁣󠁴󠁿"),
        ("👩‍👩‍👧‍👦", "👩‍👩‍👧‍👦"),
        ("🕵‍♀", "🕵️‍♀️"),
        ("🏳‍🌈", "🏳️‍🌈"),
    ],
)
def test_every_spelling_of_an_emoji_is_one_emoji(text: str, normal: str) -> None:
    assert normal_emoji(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1",
        "+1",
        ":thumbsup:",
        "👍👍",
        "👍 ",
        " 👍",
        "❤️!",
        "\ufe0f",
        "\u200d",
        "🏽",
        "🇩",
        "👍\u200d",
        "é",
        "字",
        "©x",
        "\0",
    ],
)
def test_what_is_no_single_emoji_is_none(text: str) -> None:
    assert normal_emoji(text) is None


@given(st.text(max_size=limits.EMOJI_CHARS_MAX))
def test_the_normal_form_of_anything_is_its_own_normal_form(text: str) -> None:
    normal = normal_emoji(text)
    assert normal is None or normal_emoji(normal) == normal


# --- reacting ---------------------------------------------------------------------------------------------------------


async def test_a_reaction_is_on_the_message_and_told_with_it() -> None:
    room = await open_room(2)
    ann, bob = room.people
    message = await room.post(ann)
    await room.reactions.react(bob, message, "❤", added=True)
    await room.reactions.react(ann, message, "❤️", added=True)
    tallies = (Tally("❤️", 2, (bob.user_id, ann.user_id)),)
    assert (await room.message(message)).reactions == tallies
    [first, second] = room.told
    assert isinstance(event := first.entry.event, ReactionChanged)
    assert (event.actor_id, event.emoji, event.added, event.message_id) == (bob.user_id, "❤️", True, message)
    assert second.subject is not None and second.subject.event.reactions == tallies  # type: ignore[union-attr]


async def test_reacting_twice_is_reacting_once() -> None:
    room = await open_room(2)
    ann, bob = room.people
    message = await room.post(ann)
    await room.reactions.react(bob, message, "👍", added=False)
    for _ in range(3):
        await room.reactions.react(bob, message, "👍", added=True)
    assert (await room.message(message)).reactions == (Tally("👍", 1, (bob.user_id,)),)
    assert len(room.told) == 1
    for _ in range(3):
        await room.reactions.react(bob, message, "👍", added=False)
    assert (await room.message(message)).reactions == ()
    assert len(room.told) == 2 and room.store.all(Reaction) == []


async def test_whoever_takes_theirs_back_is_replaced_by_another_name() -> None:
    room = await open_room(limits.REACTORS_SHOWN_MAX + 3)
    message = await room.post(room.people[0])
    for person in room.people:
        await room.reactions.react(person, message, "👍", added=True)
    [tally] = (await room.message(message)).reactions
    assert list(tally.user_ids) == [person.user_id for person in room.people[: limits.REACTORS_SHOWN_MAX]]
    for person in room.people[:5]:
        await room.reactions.react(person, message, "👍", added=False)
    [tally] = (await room.message(message)).reactions
    assert tally.count == limits.REACTORS_SHOWN_MAX - 2
    assert set(tally.user_ids) == {person.user_id for person in room.people[5:]}


async def test_one_message_takes_so_many_emojis_and_one_user_so_many_on_it() -> None:
    room = await open_room(4)
    message = await room.post(room.people[0])
    used = EMOJIS[: limits.REACTIONS_PER_MESSAGE_MAX]
    for number, emoji in enumerate(used):
        await room.reactions.react(room.people[number // limits.REACTIONS_PER_USER_MAX], message, emoji, added=True)
    last = room.people[3]
    with refused("too-many"):
        await room.reactions.react(last, message, EMOJIS[limits.REACTIONS_PER_MESSAGE_MAX], added=True)
    for emoji in used[: limits.REACTIONS_PER_USER_MAX]:
        await room.reactions.react(last, message, emoji, added=True)
    with refused("too-many"):
        await room.reactions.react(last, message, used[-1], added=True)
    await room.reactions.react(last, message, used[0], added=False)
    await room.reactions.react(last, message, used[-1], added=True)


async def test_reactions_of_somebody_who_left_stay() -> None:
    room = await open_room(3)
    ann, bob, _carol = room.people
    message = await room.post(ann)
    await room.reactions.react(bob, message, "👍", added=True)

    async def leave(tx: Transaction) -> None:
        tx.delete(Member, room.id, bob.user_id)

    await room.store.write(leave)
    assert (await room.message(message)).reactions == (Tally("👍", 1, (bob.user_id,)),)
    with refused("not-found"):
        await room.reactions.react(bob, message, "👍", added=False)


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_text_is_no_reaction() -> None:
    room = await open_room(1)
    message = await room.post(room.people[0])
    for added in (True, False):
        with refused("invalid-request") as refusal:
            await room.reactions.react(room.people[0], message, "no", added=added)
        assert refusal.value.errors == [{"path": "emoji", "message": "one emoji and nothing else"}]
    with refused("invalid-request"):
        await room.reactions.reactions(room.people[0], message, "no", 50, None)


async def test_what_somebody_may_not_see_they_cannot_react_to() -> None:
    room = await open_room(3)
    ann, bob, late = room.people
    hidden, expired, message = [await room.post(ann) for _ in range(3)]
    await room.store.write(putting(Hidden(room.id, bob.user_id, 1, hidden, 1)))
    await room.change_member(bob, hidden_at=1)
    await room.rewrite(expired, expires_at=room.clock.now())
    await room.change_member(late, joined_sequence=3)
    for who, what in ((bob, hidden), (bob, expired), (late, message), (somebody(), message), (ann, new_id())):
        for added in (True, False):
            with refused("not-found"):
                await room.reactions.react(who, what, "👍", added=added)
        with refused("not-found"):
            await room.reactions.reactions(who, what, None, 50, None)
    await room.change_member(late, sees_history=True)
    await room.reactions.react(late, message, "👍", added=True)
    await room.reactions.react(ann, hidden, "👍", added=True)


async def test_a_tombstone_takes_no_reaction_and_gives_one_back_in_silence() -> None:
    room = await open_room(2)
    ann, bob = room.people
    message = await room.post(ann)
    await room.reactions.react(bob, message, "👍", added=True)
    await room.bury(message)
    with refused("message-deleted"):
        await room.reactions.react(bob, message, "🎉", added=True)
    await room.reactions.react(bob, message, "👍", added=False)
    assert len(room.told) == 1
    assert (await room.message(message)).reactions == ()


async def test_of_a_deleted_message_nobody_is_told_who_reacted_though_rows_may_be_left_for_a_while() -> None:
    room = await open_room(2)
    ann, bob = room.people
    many = limits.ERASED_ROWS_MAX + 5
    message = await room.post(ann, reactions=(Tally("👍", many, ()),))
    await room.store.write(putting(*(Reaction(message, new_id(), "👍", 1) for _ in range(many))))
    await room.amendments.delete(ann, message, for_everyone=True)
    assert len(room.store.all(Reaction)) == 5, "the timer has not come by"
    assert await all_reactors(room, bob, message, None, 50) == []


async def test_between_two_who_blocked_each_other_reactions_are_only_taken_back() -> None:
    room = await open_room(2, type="direct")
    ann, bob = room.people
    message = await room.post(ann)
    await room.reactions.react(bob, message, "👍", added=True)
    await room.change(is_blocked=True)
    with refused("refused-by-privacy"):
        await room.reactions.react(bob, message, "🎉", added=True)
    await room.reactions.react(bob, message, "👍", added=False)
    assert (await room.message(message)).reactions == ()


async def test_reactions_come_out_of_the_budget_of_messages() -> None:
    room = await open_room(1, messages_per_second=1, messages_burst=3)
    [ann] = room.people
    message = await room.post(ann)
    for emoji in ("👍", "🎉", "❤️"):
        await room.reactions.react(ann, message, emoji, added=True)
    with refused("rate-limited"):
        await room.reactions.react(ann, message, "👍", added=False)


# --- who reacted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
async def test_pages_of_reactors_hold_each_reaction_once(limit: int) -> None:
    room = await open_room(7)
    message, other = await room.post(room.people[0]), await room.post(room.people[0])
    for number, person in enumerate(room.people):
        for emoji in ("👍", "❤️", "🎉")[: number % 3 + 1]:
            await room.reactions.react(person, message, emoji, added=True)
        await room.reactions.react(person, other, "👎", added=True)
    rows = [row for row in room.store.all(Reaction) if row.message_id == message]
    found = await all_reactors(room, room.people[1], message, None, limit)
    assert [(each.user_id, each.emoji) for each in found] == [(row.user_id, row.emoji) for row in rows]
    for emoji in ("👍", "❤", "🎉", "👎"):
        found = await all_reactors(room, room.people[1], message, emoji, limit)
        wanted = normal_emoji(emoji)
        assert [each.user_id for each in found] == [row.user_id for row in rows if row.emoji == wanted]


async def test_a_rare_emoji_is_found_behind_a_thousand_others() -> None:
    room = await open_room(1)
    [ann] = room.people
    message = await room.post(ann)
    users = sorted(new_id() for _ in range(1201))
    await room.store.write(putting(*(Reaction(message, user_id, "👍", 1) for user_id in users[:-1])))
    await room.store.write(putting(Reaction(message, users[-1], "🎉", 1)))
    await room.rewrite(message, reactions=(Tally("👍", 1200, ()), Tally("🎉", 1, (users[-1],))))
    first = await room.reactions.reactions(ann, message, "🎉", 50, None)
    assert first.items == [] and first.next is not None, "one call looks at a bounded number of reactions"
    assert [each.user_id for each in await all_reactors(room, ann, message, "🎉", 50)] == [users[-1]]


@pytest.mark.parametrize(
    "cursor", ["x", "!!", encode_cursor("a"), encode_cursor("a", "b"), encode_cursor("a", "b", "c")]
)
async def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    room = await open_room(1)
    message = await room.post(room.people[0])
    await room.reactions.react(room.people[0], message, "👍", added=True)
    with refused("invalid-request"):
        await room.reactions.reactions(room.people[0], message, None, 50, cursor)


# --- always right -----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("react"), st.integers(0, 5), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("burst"), st.integers(0, 3), st.booleans()),
        st.just(("wait",)),
        st.just(("crash",)),
    ),
    max_size=40,
)


@given(STEPS)
def test_tallies_are_those_of_the_rows_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    async def story() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "REACTORS_SHOWN_MAX", 3)
            patch.setattr(limits, "REACTIONS_PER_USER_MAX", 3)
            room = await open_room(6)
            message = await room.post(room.people[0])
            for crash, part in _between_crashes(steps):
                async with trio.open_nursery() as nursery:
                    await nursery.start(room.storms.run)
                    for step in part:
                        await _take(room, message, step)
                        await _agree(room, message)
                    if not crash:
                        await trio.sleep(3)
                        if room.told:
                            assert room.told[-1].subject == await room.entry(message)
                    nursery.cancel_scope.cancel(reason="the end, or a crash")
                room.restart()

    trio.run(story, clock=MockClock(autojump_threshold=0))


def _between_crashes(steps: list[tuple[Any, ...]]) -> list[tuple[bool, list[tuple[Any, ...]]]]:
    parts: list[list[tuple[Any, ...]]] = [[]]
    for step in steps:
        if step == ("crash",):
            parts.append([])
        else:
            parts[-1].append(step)
    return [(number + 1 < len(parts), part) for number, part in enumerate(parts)]


async def _take(room: Room, message: str, step: tuple[Any, ...]) -> None:
    async def react(person: Actor, emoji: str, added: bool) -> None:
        held = [row for row in room.store.all(Reaction) if row.user_id == person.user_id]
        if added and len(held) >= 3 and emoji not in [row.emoji for row in held]:
            with refused("too-many"):
                await room.reactions.react(person, message, emoji, added=True)
        else:
            await room.reactions.react(person, message, emoji, added=added)

    match step:
        case ("react", person, emoji, added):
            await react(room.people[person], EMOJIS[emoji], added)
        case ("burst", emoji, added):
            for person in room.people:
                await react(person, EMOJIS[emoji], added)
        case ("wait",):
            await trio.sleep(0.4)


async def _agree(room: Room, message: str) -> None:
    rows = room.store.all(Reaction)
    tallies = (await room.message(message)).reactions
    assert {tally.emoji for tally in tallies} == {row.emoji for row in rows}
    assert len(tallies) == len({tally.emoji for tally in tallies})
    for tally in tallies:
        users = {row.user_id for row in rows if row.emoji == tally.emoji}
        assert tally.count == len(users)
        assert len(tally.user_ids) == len(set(tally.user_ids)) == min(3, len(users))
        assert set(tally.user_ids) <= users
