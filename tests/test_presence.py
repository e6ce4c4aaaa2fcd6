"""Presence: who hears of whom, when, how often, and who must not."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import trio
from msgspec import UNSET, structs
from trio.testing import MockClock, wait_all_tasks_blocked

from config import limits
from gearlink import presence, protocol
from gearlink.accounts import Actor
from gearlink.clock import new_id, rfc3339
from gearlink.errors import Refusal
from gearlink.journal import Metrics
from gearlink.presence import Presence
from gearlink.pressure import Load, Pressure
from storage.records import Account, Block, LastSeen, Privacy, Record
from storage.store import StoreFull, Transaction
from tests.fakes import FakeClock, FakeStore

ONLINE = "online"


class Session:
    """A watcher that remembers what it was told."""

    def __init__(self, user_id: str) -> None:
        self.actor = Actor(user_id, new_id(), new_id(), 2**60, False)
        self.frames: list[protocol.Presence] = []

    def say(self, message: protocol.AnyServerFrame) -> None:
        assert isinstance(message, protocol.Presence)
        self.frames.append(message)

    def heard(self) -> list[tuple[str, Any]]:
        """User and what they are, `online` or since when they are not, of each frame since the last call."""
        frames, self.frames = self.frames, []
        return [(each.user_id, ONLINE if each.status == ONLINE else each.last_seen_at) for each in frames]


class Place:
    """Presence on fakes, and the people that it is about."""

    def __init__(self) -> None:
        self.store, self.clock, self.metrics = FakeStore(), FakeClock(), Metrics()
        self.pressure = Pressure(self.metrics, lambda: 0)
        self.presence = Presence(self.store, self.clock, self.pressure)

    async def put(self, *records: Record) -> None:
        async def change(tx: Transaction) -> None:
            for record in records:
                tx.put(record)

        await self.store.write(change)

    async def person(self) -> str:
        user_id = new_id()
        await self.put(Account(user_id, "", 1, 1))
        return user_id

    async def watcher(self, *user_ids: str) -> Session:
        """Somebody new who watches these; what they were answered is forgotten."""
        session = Session(await self.person())
        await self.presence.watch(session, user_ids)
        assert [user_id for user_id, _what in session.heard()] == list(user_ids)
        return session

    async def passes(self, seconds: float) -> None:
        self.clock.advance(seconds=seconds)
        await trio.sleep(seconds)
        await wait_all_tasks_blocked()

    async def leaves(self, user_id: str) -> str:
        """The last socket of the user is closed; when, as others are told."""
        self.presence.left(user_id)
        return rfc3339(self.clock.now())

    @property
    def shed(self) -> float:
        return self.metrics.registry.get_sample_value("load_shed_total", {"what": Load.PRESENCE.label}) or 0.0


@pytest.fixture
async def place(nursery: trio.Nursery) -> AsyncIterator[Place]:
    opened = Place()
    await nursery.start(opened.presence.run)
    yield opened


async def test_who_watches_is_answered_at_once_and_hears_of_coming_and_going(
    autojump_clock: MockClock, place: Place
) -> None:
    ann, bob = await place.person(), await place.person()
    place.presence.came(bob)
    session = Session(await place.person())
    await place.presence.watch(session, [ann, bob, ann])
    assert session.heard() == [(ann, UNSET), (bob, ONLINE)]
    place.presence.came(ann)
    await place.passes(0.125)
    assert session.heard() == [(ann, ONLINE)]
    await place.passes(60)
    left_at = await place.leaves(ann)
    await place.passes(1.875)
    assert session.heard() == []
    await place.passes(1.25)
    assert session.heard() == [(ann, left_at)]
    assert await place.store.get(LastSeen, ann) == LastSeen(ann, place.clock.now() - 3125)


async def test_a_reconnect_within_the_grace_is_no_news_and_stores_nothing(
    autojump_clock: MockClock, place: Place
) -> None:
    ann = await place.person()
    place.presence.came(ann)
    session = await place.watcher(ann)
    for _ in range(5):
        place.presence.left(ann)
        await place.passes(1.5)
        place.presence.came(ann)
        await place.passes(10)
    assert session.heard() == []
    assert place.store.all(LastSeen) == []


async def test_nobody_is_told_of_changes_more_often_than_once_a_second(autojump_clock: MockClock, place: Place) -> None:
    ann = await place.person()
    session = await place.watcher(ann)
    told_at: list[float] = []
    for _ in range(200):
        before = len(session.frames)
        if place.presence.is_online(ann):
            place.presence.left(ann)
        else:
            place.presence.came(ann)
        await place.passes(0.375)
        if len(session.frames) > before:
            told_at.append(trio.current_time())
    assert len(told_at) > 5
    assert all(later - sooner >= 0.99 for sooner, later in pairwise(told_at))


async def test_another_set_takes_the_place_of_the_one_before(autojump_clock: MockClock, place: Place) -> None:
    ann, bob = await place.person(), await place.person()
    session = await place.watcher(ann)
    await place.presence.watch(session, [bob])
    assert session.heard() == [(bob, UNSET)]
    place.presence.came(ann)
    place.presence.came(bob)
    await place.passes(3)
    assert session.heard() == [(bob, ONLINE)]
    await place.presence.watch(session, [])
    place.presence.left(bob)
    await place.passes(5)
    assert session.heard() == []


async def test_nothing_is_kept_of_watchers_that_have_gone(autojump_clock: MockClock, place: Place) -> None:
    people = [await place.person() for _ in range(20)]
    sessions = [await place.watcher(*people) for _ in range(10)]
    for user_id in people:
        place.presence.came(user_id)
    for session in sessions:
        place.presence.forget(session)
        place.presence.forget(session)
    for user_id in people:
        place.presence.left(user_id)
    await place.passes(5)
    held = [name for name, value in vars(place.presence).items() if isinstance(value, dict | set) and value]
    assert held == []
    assert [session.heard() for session in sessions] == [[]] * 10


async def test_who_may_not_know_sees_somebody_who_does_not_exist(autojump_clock: MockClock, place: Place) -> None:
    viewer = Session(await place.person())
    hidden = {
        name: await place.person() for name in ("suspended", "deleted", "blocks me", "blocked", "nobody", "contacts")
    }
    await place.put(
        Account(hidden["suspended"], "", 1, 1, suspended_at=2),
        Account(hidden["deleted"], "", 1, 1, deleted_at=2),
        Block(hidden["blocks me"], viewer.actor.user_id, 1),
        Block(viewer.actor.user_id, hidden["blocked"], 1),
        Privacy(hidden["nobody"], last_seen="nobody"),
        Privacy(hidden["contacts"], last_seen="contacts"),
        *(LastSeen(user_id, 1) for user_id in hidden.values()),
    )
    stranger = new_id()
    for _ in ("while they are online", "and while they are not"):
        for user_id in hidden.values():
            (place.presence.left if place.presence.is_online(user_id) else place.presence.came)(user_id)
        await place.presence.watch(viewer, [stranger, *hidden.values()])
        frames = [structs.replace(frame, user_id="") for frame in viewer.frames]
        viewer.frames.clear()
        assert frames == [protocol.Presence(user_id="", status="offline")] * 7
        await place.passes(10)
        assert viewer.heard() == []


@pytest.mark.parametrize("how", ["block", "blocked", "privacy"])
async def test_who_may_know_no_longer_hears_nothing_further(autojump_clock: MockClock, place: Place, how: str) -> None:
    ann = await place.person()
    place.presence.came(ann)
    session, other = await place.watcher(ann), await place.watcher(ann)
    me = session.actor.user_id
    await place.put(
        {"block": Block(ann, me, 1), "blocked": Block(me, ann, 1), "privacy": Privacy(ann, last_seen="nobody")}[how]
    )
    place.presence.left(ann)
    await place.passes(4)
    place.presence.came(ann)
    await place.passes(4)
    assert session.heard() == []
    assert len(other.heard()) == (0 if how == "privacy" else 2)


async def test_of_an_account_that_has_ended_everybody_hears_no_more_than_that_it_is_offline(
    autojump_clock: MockClock, place: Place
) -> None:
    ann = await place.person()
    place.presence.came(ann)
    session = await place.watcher(ann)
    await place.put(Account(ann, "", 1, 1, suspended_at=2))
    place.presence.left(ann)
    await place.passes(4)
    assert session.heard() == [(ann, UNSET)]


async def test_under_pressure_changes_wait_and_then_it_is_told_where_they_led(
    autojump_clock: MockClock, place: Place
) -> None:
    ann, bob, eve = [await place.person() for _ in range(3)]
    place.presence.came(eve)
    session = await place.watcher(ann, bob, eve)
    place.pressure.level = Load.PRESENCE
    place.presence.came(ann)
    await place.passes(5)
    place.presence.came(bob)
    place.presence.left(bob)
    place.presence.left(eve)
    await place.passes(5)
    assert session.heard() == [] and place.shed >= 5
    assert place.store.all(LastSeen) == []
    place.presence.came(eve)
    before = place.shed
    place.pressure.level = 0
    await place.passes(2)
    assert [user_id for user_id, _what in session.heard()] == [ann, bob]
    assert [record.user_id for record in place.store.all(LastSeen)] == [bob]
    await place.passes(10)
    assert session.heard() == [] and place.shed == before


async def test_an_answer_tells_what_is_so_now_and_the_change_is_not_told_again(
    autojump_clock: MockClock, place: Place
) -> None:
    ann = await place.person()
    place.pressure.level = Load.PRESENCE  # the change waits
    old = await place.watcher(ann)
    place.presence.came(ann)
    new = Session(await place.person())
    await place.presence.watch(new, [ann])
    assert new.heard() == [(ann, ONLINE)]
    place.pressure.level = 0
    await place.passes(3)
    assert old.heard() == [(ann, ONLINE)] and new.heard() == []


async def test_many_who_leave_are_stored_in_few_changes(autojump_clock: MockClock, place: Place) -> None:
    people = [await place.person() for _ in range(450)]
    for user_id in people:
        place.presence.came(user_id)
    for user_id in people:
        place.presence.left(user_id)
    before = place.store.writes
    await place.passes(4)
    assert len(place.store.all(LastSeen)) == 450 and place.store.writes - before == 3


async def test_the_end_stores_who_was_here_without_waiting_for_the_grace(
    autojump_clock: MockClock, place: Place
) -> None:
    ann = await place.person()
    place.presence.came(ann)
    await place.leaves(ann)
    await place.presence.flush()
    assert place.store.all(LastSeen) == [LastSeen(ann, place.clock.now())]


async def test_without_room_on_the_disk_people_still_come_and_go(autojump_clock: MockClock, place: Place) -> None:
    ann = await place.person()
    place.presence.came(ann)
    session = await place.watcher(ann)
    place.store.fail_next = StoreFull("no room")
    place.presence.left(ann)
    await place.passes(4)
    assert session.heard() == [(ann, UNSET)]
    place.presence.came(ann)
    await place.passes(2)
    assert session.heard() == [(ann, ONLINE)]


async def test_nothing_is_stored_of_who_was_erased_meanwhile(autojump_clock: MockClock, place: Place) -> None:
    nobody = new_id()
    place.presence.came(nobody)
    place.presence.left(nobody)
    await place.passes(4)
    assert place.store.all(LastSeen) == []


async def test_too_many_calls_or_users_are_refused_and_the_old_set_stays(
    autojump_clock: MockClock, place: Place
) -> None:
    ann, bob = await place.person(), await place.person()
    session = await place.watcher(ann)
    many = [new_id() for _ in range(limits.WATCHED_MAX)]
    with pytest.raises(Refusal) as refused:
        for _ in range(3):
            await place.presence.watch(session, many)
    assert refused.value.code == "rate-limited"
    await place.passes(10)
    with pytest.raises(Refusal) as refused:
        for _ in range(limits.WATCHES_BURST + 1):
            await place.presence.watch(session, [ann])
            session.heard()
        await place.presence.watch(session, [bob])
    assert refused.value.code == "rate-limited"
    place.presence.came(ann)
    place.presence.came(bob)
    await place.passes(3)
    assert session.heard() == [(ann, ONLINE)]


async def test_a_user_with_many_watchers_is_told_in_pieces(
    autojump_clock: MockClock, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(*_ids: object) -> bool:
        return True  # without a checkpoint, as a read from memory has none

    monkeypatch.setattr(presence, "may_see_presence", at_once)
    ann = await place.person()
    watchers = [await place.watcher(ann) for _ in range(500)]
    place.presence.came(ann)
    rounds = 0
    while not watchers[-1].frames:
        await trio.lowlevel.checkpoint()
        rounds += 1
    assert rounds >= 500 / 50
    assert [session.heard() for session in watchers] == [[(ann, ONLINE)]] * 500


async def test_who_changes_while_it_is_told_ends_with_what_is_so(autojump_clock: MockClock, place: Place) -> None:
    ann = await place.person()
    watchers = [await place.watcher(ann) for _ in range(300)]
    place.presence.came(ann)
    while not watchers[0].frames:
        await trio.lowlevel.checkpoint()
    place.presence.left(ann)  # the last of them have not heard yet that she came
    await place.presence.flush()
    assert not watchers[-1].frames
    await place.presence.watch(watchers[-1], [ann])
    await place.passes(5)
    assert len(watchers[-1].frames) == 1
    last = [session.heard()[-1:] for session in watchers]
    seen = rfc3339(place.store.all(LastSeen)[0].at)
    assert last[0] == [(ann, seen)]
    assert all(each == [(ann, seen)] for each in last)
