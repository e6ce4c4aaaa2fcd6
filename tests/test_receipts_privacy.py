"""Receipts: who learns of a mark, and who does not, live, on coming back and on asking; and when."""

from typing import Any

import pytest
import trio
from msgspec import structs
from trio.testing import MockClock

from config import limits
from config.settings import Settings, with_values
from gearlink.accounts import Actor
from gearlink.calls import MessageForm
from gearlink.clock import new_id
from gearlink.device_lists import DeviceLists
from gearlink.errors import Refusal
from gearlink.journal import Metrics
from gearlink.messages import Messages
from gearlink.pressure import Pressure
from gearlink.receipts import Receipts
from gearlink.throttle import Budget
from storage.notices import Delivered, Read
from storage.records import Contact, Delivery, Member, MessageIndex, Privacy
from tests.changes import putting
from tests.gatherings import Town

Told = dict[str, list[str]]


class Post(Town):
    """A town with messages and receipts. `chance` decides how long marks gather."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.chance = 0.0
        self.restart()

    def restart(self) -> None:
        metrics = Metrics()
        pressure = Pressure(metrics, lambda: 0)
        budget = Budget(with_values(Settings(), {"limits.messages_per_second": 0}).limits)
        self.messages = Messages(self.store, self.clock, budget, pressure, metrics, DeviceLists())
        self.receipts = Receipts(self.store, self.clock, self.messages, pressure, lambda: self.chance)

    async def send(self, sender: Actor, conversation_id: str) -> str:
        return (await self.messages.send(sender, conversation_id, MessageForm(temp_id=new_id(), content="x"))).id

    async def sequence(self, message_id: str) -> int:
        index = await self.store.get(MessageIndex, message_id)
        assert index is not None
        return index.sequence

    async def reads(self, reader: Actor, conversation_id: str, sequence: int) -> Told:
        """The reader reads up to there; whose marks were told to the others, and which to their own devices only."""
        start = len(self.store.notices)
        self.clock.advance(seconds=1)
        await self.receipts.mark_read(reader, conversation_id, sequence)
        told: Told = {}
        for notice in self.store.notices[start:]:
            if isinstance(notice, Delivered):
                told["delivered"] = [mark.user_id for mark in notice.marks]
            elif isinstance(notice, Read):
                told["read"] = [mark.user_id for mark in notice.marks]
                told["kept"] = [mark.user_id for mark in notice.kept]
        return told

    async def status(self, asker: Actor, message_id: str, user: Actor) -> str:
        page = await self.receipts.deliveries(asker, message_id, 50, None)
        [item] = [item for item in page.items if item.user_id == user.user_id]
        return item.status

    async def missed(self, user: Actor, conversation_id: str) -> Told:
        """Whose marks a device of the user is told when it comes back."""
        delivered, read = await self.receipts.moved_since(conversation_id, user.user_id, 0)
        assert not read.kept
        return {"delivered": [each.user_id for each in delivered.marks], "read": [each.user_id for each in read.marks]}

    async def sets(self, user: Actor, **privacy: Any) -> None:
        await self.store.write(putting(Privacy(user.user_id, **privacy)))

    async def block_direct(self, conversation_id: str, *, blocked: bool = True) -> None:
        """What a block does to the direct conversation of the two."""
        conversation = await self.conversation(conversation_id)
        await self.store.write(putting(structs.replace(conversation, is_blocked=blocked)))


@pytest.fixture
def post() -> Post:
    return Post()


# --- read receipts ----------------------------------------------------------------------------------------------------


async def test_a_read_that_its_reader_keeps_is_stored_and_told_to_their_own_devices_alone(post: Post) -> None:
    ann, bob = await post.people(2)
    for kind in ("direct", "group"):
        room = await post.open(ann, bob, kind=kind)
        message = await post.send(ann, room)
        end = await post.sequence(message)
        await post.sets(bob, read_receipts=False)
        assert await post.reads(bob, room, end) == {"delivered": [bob.user_id], "read": [], "kept": [bob.user_id]}
        member = await post.member(room, bob)
        assert member is not None and member.read_sequence == end
        for _ in ("before", "after a restart"):
            assert await post.status(ann, message, bob) == "DELIVERED"
            assert await post.status(bob, message, bob) == "READ"
            assert await post.missed(ann, room) == {"delivered": [bob.user_id], "read": []}
            assert await post.missed(bob, room) == {"delivered": [], "read": [bob.user_id]}
            post.restart()
        await post.sets(bob)


async def test_keeping_reads_hides_the_earlier_ones_too_until_it_ends(post: Post) -> None:
    ann, bob, eve = await post.people(3)
    room = await post.open(ann, bob, eve)
    message = await post.send(ann, room)
    told = await post.reads(bob, room, await post.sequence(message))
    assert told == {"delivered": [bob.user_id], "read": [bob.user_id], "kept": []}
    assert await post.status(eve, message, bob) == "READ"
    await post.sets(bob, read_receipts=False)
    assert await post.status(eve, message, bob) == "DELIVERED"
    assert (await post.missed(eve, room))["read"] == []
    await post.sets(bob, read_receipts=True)
    assert await post.status(eve, message, bob) == "READ"


async def test_who_keeps_their_reads_still_hears_of_those_of_others(post: Post) -> None:
    ann, bob = await post.people(2)
    room = await post.open(ann, bob)
    message = await post.send(bob, room)
    await post.sets(bob, read_receipts=False)
    assert (await post.reads(ann, room, await post.sequence(message)))["read"] == [ann.user_id]
    assert await post.status(bob, message, ann) == "READ"


# --- strangers and blocks ---------------------------------------------------------------------------------------------


async def test_a_stranger_hears_of_no_receipt_until_they_are_answered_or_known(post: Post) -> None:
    ann, bob, eve = await post.people(3)
    await post.sets(bob, receipts_to_strangers=False)
    for who, becomes_known in ((ann, "answered"), (eve, "a contact")):
        room = await post.open(who, bob, kind="direct")
        message = await post.send(who, room)
        end = await post.sequence(message)
        assert await post.reads(bob, room, end) == {"read": [], "kept": [bob.user_id]}
        assert await post.status(who, message, bob) == "SENT"
        assert await post.missed(who, room) == {"delivered": [], "read": []}
        assert (await post.missed(bob, room))["read"] == [bob.user_id]
        await post.store.write(putting(Contact(who.user_id, bob.user_id, "", 1, 1)))  # the wrong way round
        await post.send(who, room)
        assert await post.status(who, message, bob) == "SENT"
        if becomes_known == "answered":
            await post.send(bob, room)
        else:
            await post.store.write(putting(Contact(bob.user_id, who.user_id, "", 1, 1)))
        assert await post.status(who, message, bob) == "READ"
        again = await post.send(who, room)
        told = await post.reads(bob, room, await post.sequence(again))
        assert told == {"delivered": [bob.user_id], "read": [bob.user_id], "kept": []}


async def test_in_a_group_nobody_is_a_stranger(post: Post) -> None:
    ann, bob = await post.people(2)
    await post.sets(bob, receipts_to_strangers=False)
    room = await post.open(ann, bob)
    message = await post.send(ann, room)
    assert (await post.reads(bob, room, await post.sequence(message)))["read"] == [bob.user_id]


async def test_after_a_block_neither_of_the_two_learns_anything_and_both_can_still_read(post: Post) -> None:
    ann, bob = await post.people(2)
    room = await post.open(ann, bob, kind="direct")
    messages = [await post.send(ann, room), await post.send(bob, room)]
    end = await post.sequence(messages[1])
    await post.block_direct(room)
    for reader, other, message in ((bob, ann, messages[0]), (ann, bob, messages[1])):
        assert await post.reads(reader, room, end) == {"read": [], "kept": [reader.user_id]}
        assert await post.status(other, message, reader) == "SENT"
        assert await post.missed(other, room) in (
            {"delivered": [], "read": []}, {"delivered": [], "read": [other.user_id]}
        )  # fmt: skip
        member = await post.member(room, reader)
        assert member is not None and member.read_sequence == end
    await post.block_direct(room, blocked=False)
    assert await post.status(ann, messages[0], bob) == "READ"


# --- many members -----------------------------------------------------------------------------------------------------


async def test_in_large_conversations_marks_are_told_to_ones_own_devices_alone(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECEIPTS_TOLD_MEMBERS_MAX", 3)
    ann, bob, *others = await post.people(4)
    room = await post.open(ann, bob, *others)
    message = await post.send(ann, room)
    end = await post.sequence(message)
    assert await post.reads(bob, room, end) == {"read": [], "kept": [bob.user_id]}
    assert await post.missed(ann, room) == {"delivered": [], "read": []}
    assert await post.missed(bob, room) == {"delivered": [], "read": [bob.user_id]}
    assert await post.status(ann, message, bob) == "READ"  # who asks is told


async def test_marks_of_fifty_members_are_one_change(post: Post) -> None:
    people = await post.people(50)
    room = await post.open(*people)
    await post.sets(people[1], read_receipts=False)
    message = await post.send(people[0], room)
    end, before, start = await post.sequence(message), post.store.writes, len(post.store.notices)
    for person in people[1:]:
        await post.receipts.note_read(person, room, end)
    await post.receipts.flush()
    assert post.store.writes - before == 1
    delivered, read = post.store.notices[start:]
    assert isinstance(delivered, Delivered) and isinstance(read, Read)
    assert (len(delivered.marks), len(read.marks), len(read.kept)) == (49, 48, 1)


async def test_who_has_left_moves_nothing_and_asks_for_nothing(post: Post) -> None:
    ann, bob = await post.people(2)
    room = await post.open(ann, bob)
    message = await post.send(ann, room)
    await post.receipts.note_read(bob, room, 1)
    await post.members.remove(bob, room, bob.user_id)
    start = len(post.store.notices)
    await post.receipts.flush()
    assert post.store.notices[start:] == []
    assert await post.missed(bob, room) == {"delivered": [], "read": []}
    for question in (
        post.receipts.deliveries(bob, message, 50, None),
        post.receipts.acknowledge(bob, room, 1),
        post.receipts.note_read(bob, room, 1),
        post.receipts.mark_read(bob, room, 1),
    ):
        with pytest.raises(Refusal) as refused:
            await question
        assert refused.value.code == "not-found"


async def test_a_tombstone_has_deliveries_and_what_has_expired_has_none(post: Post) -> None:
    ann, bob = await post.people(2)
    room = await post.open(ann, bob)
    gone = await post.say(ann, room, deleted_at=5, deleted_by=ann.user_id)
    expiring = await post.say(ann, room, expires_at=post.clock.now() + 5000)
    await post.reads(bob, room, limits.SEQUENCE_MAX)
    assert await post.status(ann, gone, bob) == await post.status(ann, expiring, bob) == "READ"
    post.clock.advance(seconds=5)
    assert await post.status(ann, gone, bob) == "READ"
    with pytest.raises(Refusal) as refused:
        await post.status(ann, expiring, bob)
    assert refused.value.code == "not-found"


async def test_those_who_came_after_a_message_are_not_in_its_deliveries(post: Post) -> None:
    ann, bob, eve = await post.people(3)
    room = await post.open(ann, bob)
    message = await post.send(ann, room)
    await post.add(ann, room, eve)
    await post.change_member(room, eve, sees_history=True)
    page = await post.receipts.deliveries(eve, message, 50, None)
    assert [item.user_id for item in page.items] == [bob.user_id]


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
async def test_chance_decides_how_long_marks_gather_within_bounds(
    post: Post, chance: float, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ann, bob = await post.people(2)
    room = await post.open(ann, bob)
    await post.send(ann, room)
    post.chance = chance
    told_at: list[float] = []
    post.store.listen(lambda _notices: told_at.append(trio.current_time()))
    await nursery.start(post.receipts.run)
    asked_at = trio.current_time()
    post.receipts.note(bob, room, delivered=1)
    await trio.sleep(1)
    expected = limits.RECEIPTS_FLUSH_SECONDS + chance * limits.RECEIPTS_JITTER_SECONDS
    assert told_at == [pytest.approx(asked_at + expected)]


def test_what_chance_is_left_to_differs_from_time_to_time(post: Post) -> None:
    receipts = Receipts(post.store, post.clock, post.messages, Pressure(Metrics(), lambda: 0))
    assert len({receipts._gathering_seconds() for _ in range(20)}) > 10


async def test_marks_that_gather_are_bounded_and_none_is_dropped(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIPTS_PENDING_MAX", 4)
    people = await post.people(20)
    room = await post.open(*people)
    await post.send(people[0], room)
    for person in people:
        await post.receipts.acknowledge(person, room, 1)
        await post.receipts.note_read(person, room, 1)
        assert len(post.receipts._pending) <= 4
    await post.receipts.flush()
    assert sum(each.sequence == 1 for each in post.store.all(Delivery)) == 20
    assert all(member.read_sequence == 1 for member in post.store.all(Member))
