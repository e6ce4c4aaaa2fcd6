"""Stories of polls: a vote each, counted right, and nobody's business where the poll is anonymous."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from config import limits
from gearlink.clock import new_id
from gearlink.cursors import encode_cursor
from gearlink.timeline import event_frame
from storage.events import Poll, PollChanged
from storage.records import Vote
from tests.people import refused
from tests.rooms import Room, open_room, somebody


async def poll_of(room: Room, message: str) -> Poll:
    poll = (await room.message(message)).poll
    assert poll is not None
    return poll


async def test_votes_are_counted_and_told_and_can_be_changed_and_taken_back() -> None:
    room = await open_room(3)
    ann, bob, carol = room.people
    message = await room.ask(ann, "tea", "coffee", "none")
    view = await room.polls.vote(bob, message, [1])
    assert ([option.count for option in view.options], view.voters, view.my_options) == ([0, 1, 0], 1, [1])
    await room.polls.vote(carol, message, [1])
    view = await room.polls.vote(bob, message, [0])
    assert ([option.count for option in view.options], view.voters, view.my_options) == ([1, 1, 0], 2, [0])
    view = await room.polls.vote(bob, message, [])
    assert ([option.count for option in view.options], view.voters, view.my_options) == ([0, 1, 0], 1, [])
    assert [notice.entry.event.actor_id for notice in room.told] == [each.user_id for each in (bob, carol, bob, bob)]
    last = room.told[-1]
    frame = event_frame(last.entry, subject=last.subject)
    assert [option.count for option in frame.poll.options] == [0, 1, 0]  # type: ignore[union-attr]


async def test_a_vote_that_changes_nothing_is_told_to_nobody() -> None:
    room = await open_room(2)
    ann, bob = room.people
    message = await room.ask(ann, "a", "b", "c", multiple=True)
    await room.polls.vote(bob, message, [])
    await room.polls.vote(bob, message, [2, 0])
    view = await room.polls.vote(bob, message, [0, 2])
    assert view.my_options == [0, 2] and len(room.told) == 1


@pytest.mark.parametrize(
    ("multiple", "options", "path"),
    [
        (False, [0, 1], "options"),
        (True, [1, 1], "options"),
        (False, [2], "options[0]"),
        (True, [0, 1, 2], "options[2]"),
        (True, [-1], "options[0]"),
    ],
)
async def test_a_vote_fits_its_poll(multiple: bool, options: Sequence[int], path: str) -> None:
    room = await open_room(1)
    message = await room.ask(room.people[0], "a", "b", multiple=multiple)
    with refused("invalid-request") as refusal:
        await room.polls.vote(room.people[0], message, options)
    assert refusal.value.errors is not None and refusal.value.errors[0]["path"] == path
    assert room.store.all(Vote) == [] and room.told == []


async def test_what_is_no_poll_has_no_votes() -> None:
    room = await open_room(1)
    [ann] = room.people
    message, gone = await room.post(ann), await room.ask(ann, "a", "b")
    await room.bury(gone)
    for what, code in ((message, "invalid-request"), (gone, "message-deleted"), (new_id(), "not-found")):
        with refused(code):
            await room.polls.vote(ann, what, [0])
        with refused(code):
            await room.polls.close(ann, what)
        with refused(code):
            await room.polls.votes(ann, what, 50, None)


async def test_strangers_and_latecomers_find_no_poll() -> None:
    room = await open_room(2)
    ann, late = room.people
    message = await room.ask(ann, "a", "b")
    await room.change_member(late, joined_sequence=1)
    for who in (late, somebody()):
        with refused("not-found"):
            await room.polls.vote(who, message, [0])
        with refused("not-found"):
            await room.polls.close(who, message)
        with refused("not-found"):
            await room.polls.votes(who, message, 50, None)


async def test_between_two_who_blocked_each_other_nobody_votes() -> None:
    room = await open_room(2, type="direct")
    ann, bob = room.people
    message = await room.ask(ann, "a", "b")
    await room.change(is_blocked=True)
    with refused("refused-by-privacy"):
        await room.polls.vote(bob, message, [0])
    with refused("refused-by-privacy"):
        await room.polls.close(ann, message)


async def test_votes_come_out_of_the_budget_of_messages() -> None:
    room = await open_room(1, messages_per_second=1, messages_burst=2)
    [ann] = room.people
    message = await room.ask(ann, "a", "b")
    await room.polls.vote(ann, message, [0])
    await room.polls.vote(ann, message, [1])
    with refused("rate-limited"):
        await room.polls.vote(ann, message, [0])


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_its_author_and_moderators_close_a_poll_and_nobody_else() -> None:
    room = await open_room(3)
    owner, author, member = room.people
    first, second = await room.ask(author, "a", "b"), await room.ask(author, "a", "b")
    with refused("forbidden"):
        await room.polls.close(member, first)
    await room.polls.vote(author, first, [1])
    view = await room.polls.close(author, first)
    assert view.closed_at is not None and view.my_options == [1]
    assert (await room.polls.close(owner, second)).closed_at is not None
    for what in (first, second):
        with refused("poll-closed"):
            await room.polls.vote(member, what, [0])
        with refused("poll-closed"):
            await room.polls.vote(author, what, [])
    assert [notice.entry.event.actor_id for notice in room.told[1:]] == [author.user_id, owner.user_id]


async def test_closing_a_closed_poll_tells_nobody_and_moves_nothing() -> None:
    room = await open_room(1)
    message = await room.ask(room.people[0], "a", "b")
    first = await room.polls.close(room.people[0], message)
    room.clock.advance(minutes=1)
    assert await room.polls.close(room.people[0], message) == first
    assert len(room.told) == 1


async def test_of_two_who_talk_only_the_author_closes_a_poll() -> None:
    room = await open_room(2, type="direct")
    ann, bob = room.people
    message = await room.ask(ann, "a", "b")
    with refused("forbidden"):
        await room.polls.close(bob, message)
    assert (await room.polls.close(ann, message)).closed_at is not None


async def test_a_poll_takes_no_votes_from_its_time_on_and_the_timer_says_so_once() -> None:
    room = await open_room(2)
    ann, bob = room.people
    closes_at = room.clock.now() + 60_000
    message = await room.ask(ann, "a", "b", closes_at=closes_at)
    await room.polls.close_due(message)
    await room.polls.vote(bob, message, [0])
    assert (await poll_of(room, message)).closed_at == 0
    room.clock.advance(seconds=60)
    with refused("poll-closed"):
        await room.polls.vote(bob, message, [1])
    room.clock.advance(seconds=5)
    for _ in range(2):
        await room.polls.close_due(message)
    assert (await poll_of(room, message)).closed_at == closes_at
    assert len(room.told) == 2 and room.told[-1].entry.event.actor_id == ann.user_id


async def test_the_timer_makes_nothing_of_polls_that_are_gone() -> None:
    room = await open_room(1)
    [ann] = room.people
    closes_at = room.clock.now()
    gone, expired = (
        await room.ask(ann, "a", "b", closes_at=closes_at),
        await room.ask(ann, "a", "b", closes_at=closes_at),
    )
    await room.bury(gone)
    await room.rewrite(expired, expires_at=room.clock.now())
    for message in (gone, expired, await room.post(ann), new_id()):
        await room.polls.close_due(message)
    assert room.told == []


# --- who voted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 200])
async def test_pages_of_votes_hold_each_vote_once(limit: int) -> None:
    room = await open_room(5)
    message, other = await room.ask(room.people[0], "a", "b"), await room.ask(room.people[0], "a", "b")
    for number, person in enumerate(room.people):
        await room.polls.vote(person, message, [number % 2])
        await room.polls.vote(person, other, [0])
    found: list[tuple[str, list[int]]] = []
    cursor = None
    for _ in range(9):
        page = await room.polls.votes(room.people[3], message, limit, cursor)
        found += [(vote.user_id, vote.options) for vote in page.items]
        if (cursor := page.next) is None:
            break
    assert found == sorted((person.user_id, [number % 2]) for number, person in enumerate(room.people))
    for wrong in ("x", encode_cursor("a"), encode_cursor("a", "b")):
        with refused("invalid-request"):
            await room.polls.votes(room.people[0], message, limit, wrong)


async def test_of_an_anonymous_poll_nobody_learns_who_voted() -> None:
    room = await open_room(2)
    ann, bob = room.people
    message = await room.ask(ann, "a", "b", anonymous=True)
    await room.polls.vote(bob, message, [1])
    for who in room.people:
        with refused("forbidden"):
            await room.polls.votes(who, message, 50, None)
    [told] = room.told
    assert told.entry.event.actor_id == ann.user_id
    assert (await poll_of(room, message)).voters == 1
    assert bob.user_id not in repr(told)


# --- always right -----------------------------------------------------------------------------------------------------

CHOICES = st.lists(st.integers(0, 3), unique=True, max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), CHOICES),
        st.tuples(st.just("all"), CHOICES),
        st.just(("wait",)),
        st.just(("crash",)),
    ),
    max_size=40,
)


@given(STEPS)
def test_counts_are_those_of_the_votes_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    async def story() -> None:
        room = await open_room(6)
        message = await room.ask(room.people[0], "a", "b", "c", "d", multiple=True)
        for step in steps:
            match step:
                case ("wait",):
                    await trio.sleep(0.4)
                case ("crash",):
                    room.restart()
                case ("all", options):
                    for person in room.people:
                        await room.polls.vote(person, message, options)
                case (person, options):
                    await room.polls.vote(room.people[person], message, options)
            votes, poll = room.store.all(Vote), await poll_of(room, message)
            assert poll.voters == len(votes) and all(vote.options for vote in votes)
            assert list(poll.counts) == [sum(number in vote.options for vote in votes) for number in range(4)]
        room.restart()
        async with trio.open_nursery() as nursery:
            await nursery.start(room.storms.run)
            nursery.cancel_scope.cancel(reason="what was left is told")
        if room.told:
            assert room.told[-1].subject == await room.entry(message)

    trio.run(story, clock=MockClock(autojump_threshold=0))


async def test_a_storm_of_votes_is_told_ten_times_a_second(autojump_clock: MockClock) -> None:
    room = await open_room(200)
    message = await room.ask(room.people[0], "a", "b")
    async with trio.open_nursery() as nursery:
        await nursery.start(room.storms.run)
        for number, person in enumerate(room.people):
            await room.polls.vote(person, message, [number % 2])
        await trio.sleep(2)
        nursery.cancel_scope.cancel(reason="the story is over")
    assert len(room.told) == limits.CHANGES_TOLD_PER_SECOND + 1
    assert all(isinstance(notice.entry.event, PollChanged) for notice in room.told)
    assert room.told[-1].subject == await room.entry(message)
    assert (await poll_of(room, message)).counts == (100, 100)
