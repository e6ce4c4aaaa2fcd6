"""Receipts: watermarks that say how far a conversation has reached a device (delivered) and a person (read).

A mark is one small record a device or member, never one a message, and never moves backwards. Marks from sockets gather
for a moment and are stored together, in one change for everybody, and told only then: so a room in which fifty people
acknowledge each message costs one write. How long they gather is left to chance, so that nobody can tell from the time of
a receipt what the other's device is doing. What is lost in a crash is a few marks, and the device is sent a little again.
`deliveries` computes the state of one message from the marks.

What others learn of somebody's marks is decided in one place, `_reach`, each time they are told or asked for: the marks
themselves are stored whatever the privacy settings say, since unread counts and the reader's own devices need them.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import trio
from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.ciphertexts import forget_acknowledged
from gearlink.clock import Clock, rfc3339
from gearlink.cursors import page_of
from gearlink.journal import logger
from gearlink.messages import Messages
from gearlink.people import privacy_of
from gearlink.pressure import Load, Pressure
from gearlink.rights import Right, enter
from gearlink.views import DeliveryView, Page
from storage.notices import Delivered, Mark, Read
from storage.records import Contact, Conversation, Delivery, Head, Member
from storage.store import Reads, Store, StoreError, Transaction

_log = logger("receipts")
_MARKS_PER_CHANGE_MAX = 1000
_DELIVERIES_MAX = limits.RECEIPTS_TOLD_MEMBERS_MAX * limits.DEVICES_PER_USER_MAX
_Key = tuple[str, str, str]  # conversation, user, device


class _Reach(IntEnum):
    """How much of somebody's marks the other members learn."""

    NOTHING = 0
    DELIVERED = 1
    READ = 2


async def _reach(reads: Reads, conversation: Conversation, user_id: str) -> _Reach:
    """What this member's blocks and privacy settings, as they are now, let the others know."""
    if conversation.is_blocked:
        return _Reach.NOTHING
    privacy = await privacy_of(reads, user_id)
    if conversation.type == "direct" and not privacy.receipts_to_strangers:
        for member in await reads.scan(Member, conversation.conversation_id, limit=2):
            if member.user_id == user_id:
                is_known = member.has_written
            else:
                is_known = await reads.get(Contact, user_id, member.user_id) is not None
            if is_known:
                break
        else:
            return _Reach.NOTHING
    return _Reach.READ if privacy.read_receipts else _Reach.DELIVERED


@dataclass(slots=True)
class _Noted:
    delivered: int = 0
    read: int = 0


@dataclass(slots=True)
class _Moved:
    """What is to be announced of one conversation."""

    conversation: Conversation
    delivered: list[Mark] = field(default_factory=list)
    read: list[Mark] = field(default_factory=list)
    kept: list[Mark] = field(default_factory=list)

    @property
    def is_large(self) -> bool:
        return self.conversation.member_count > limits.RECEIPTS_TOLD_MEMBERS_MAX


@dataclass(slots=True)
class _Room:
    """How many envelopes may still be deleted in this change."""

    envelopes: int = limits.ENVELOPES_ERASED_MAX


class Receipts:
    """Owned by one task: `run`. `acknowledge` and `note_read` only take a note of it. `chance` is from 0 to 1;
    `acknowledged` hears of encrypted conversations in which something was, once that is stored."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        messages: Messages,
        pressure: Pressure,
        chance: Callable[[], float] = random.random,
        *,
        acknowledged: Callable[[str], None] = lambda _conversation_id: None,
    ) -> None:
        self._store, self._clock, self._messages, self._pressure = store, clock, messages, pressure
        self._chance, self._acknowledged = chance, acknowledged
        # One a device and conversation, however often it moves. Frames wait at RECEIPTS_PENDING_MAX; what a resume notes
        # on top of that is one for each conversation of a device.
        self._pending: dict[_Key, _Noted] = {}
        self._wanted = trio.Event()

    async def acknowledge(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """Everything up to `sequence` reached this device. Raises Refusal `not-found` for a stranger."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        await self._make_room()
        self.note(actor, conversation_id, delivered=sequence)

    async def note_read(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """This user has read up to `sequence`. Raises Refusal `not-found` for a stranger."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        await self._make_room()
        self.note(actor, conversation_id, delivered=sequence, read=sequence)

    async def mark_read(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """Like `note_read`, at once, and returns once it is stored. It takes a person, so its time gives no device away."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        await self._store_marks({(conversation_id, actor.user_id, actor.device_id): _Noted(sequence, sequence)})

    async def _make_room(self) -> None:
        if len(self._pending) >= limits.RECEIPTS_PENDING_MAX:
            await self.flush()

    def note(self, actor: Actor, conversation_id: str, *, delivered: int = 0, read: int = 0) -> None:
        """Takes a mark of a member whose membership was checked; marks only grow."""
        key = (conversation_id, actor.user_id, actor.device_id)
        mark = self._pending.setdefault(key, _Noted())
        mark.delivered, mark.read = max(mark.delivered, delivered), max(mark.read, read)
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stores what gathers, a moment after the first of it came; under pressure a longer one."""
        task_status.started()
        while True:
            await self._wanted.wait()
            await trio.sleep(self._gathering_seconds())
            await self.flush()

    def _gathering_seconds(self) -> float:
        """Marks are never dropped: what is shed is that they are stored and told soon."""
        if not self._pressure.sheds(Load.RECEIPTS):
            return limits.RECEIPTS_FLUSH_SECONDS + limits.RECEIPTS_JITTER_SECONDS * self._chance()
        self._pressure.shed(Load.RECEIPTS)
        return limits.RECEIPTS_SHED_SECONDS

    async def flush(self) -> None:
        """Stores what has gathered, at once."""
        self._wanted = trio.Event()
        marks, self._pending = self._pending, {}
        waiting = list(marks.items())
        for start in range(0, len(waiting), _MARKS_PER_CHANGE_MAX):
            try:
                await self._store_marks(dict(waiting[start : start + _MARKS_PER_CHANGE_MAX]))
            except StoreError as trouble:  # marks are not worth a retry: the device is sent a little again
                _log.warning("receipts.not-stored", marks=len(marks), trouble=trouble)

    async def _store_marks(self, marks: dict[_Key, _Noted]) -> None:
        now = self._clock.now()
        moved: dict[str, _Moved] = {}

        async def change(tx: Transaction) -> None:
            room = _Room()
            for (conversation_id, user_id, device_id), mark in marks.items():
                if conversation_id not in moved:
                    conversation = await tx.get(Conversation, conversation_id)
                    if conversation is None:  # deleted since
                        continue
                    moved[conversation_id] = _Moved(conversation)
                await _move(tx, moved[conversation_id], user_id, device_id, mark, now, room)
            for conversation_id, each in moved.items():
                if each.delivered:
                    tx.announce(Delivered(conversation_id, tuple(each.delivered)))
                if each.read or each.kept:
                    tx.announce(Read(conversation_id, tuple(each.read), tuple(each.kept)))

        await self._store.write(change)
        for conversation_id, each in moved.items():
            if each.conversation.encryption == "e2ee":
                self._acknowledged(conversation_id)

    async def moved_since(self, conversation_id: str, user_id: str, since: int) -> tuple[Delivered, Read]:
        """The marks that moved at or after `since` (wall time), for a device of `user_id` that was away.

        Where there are too many members for marks to be told that is the user's own read mark alone.
        """
        conversation = await self._store.get(Conversation, conversation_id)
        member = await self._store.get(Member, conversation_id, user_id)
        if conversation is None or member is None:
            return Delivered(conversation_id, ()), Read(conversation_id, ())
        if conversation.member_count > limits.RECEIPTS_TOLD_MEMBERS_MAX:
            own = (_read_mark(member),) if member.read_at and member.read_at >= since else ()
            return Delivered(conversation_id, ()), Read(conversation_id, own)
        furthest: dict[str, Mark] = {}
        for each in await self._store.scan(Delivery, conversation_id, limit=_DELIVERIES_MAX):
            known = furthest.get(each.user_id)
            if known is None or each.sequence > known.sequence:
                furthest[each.user_id] = Mark(each.user_id, each.device_id, each.sequence, each.delivered_at)
        delivered, read = [], []
        for other in await self._store.scan(Member, conversation_id, limit=limits.RECEIPTS_TOLD_MEMBERS_MAX):
            mark = furthest.get(other.user_id)
            has_received = mark is not None and mark.sequence and mark.at >= since and other.user_id != user_id
            has_read = other.read_at and other.read_at >= since
            if not (has_received or has_read):
                continue
            reach = _Reach.READ if other.user_id == user_id else await _reach(self._store, conversation, other.user_id)
            if mark is not None and has_received and reach >= _Reach.DELIVERED:
                delivered.append(mark)
            if has_read and reach >= _Reach.READ:
                read.append(_read_mark(other))
        return Delivered(conversation_id, tuple(delivered)), Read(conversation_id, tuple(read))

    async def delivered_to(self, user_id: str, device_id: str, conversation_id: str) -> int | None:
        """The delivered watermark of a device; None if it was never in this conversation."""
        delivery = await self._store.get(Delivery, conversation_id, user_id, device_id)
        return None if delivery is None else delivery.sequence

    async def deliveries(self, actor: Actor, message_id: str, limit: int, cursor: str | None) -> Page[DeliveryView]:
        """How far a message got, for each member but its sender and those who came later, as they let others know it.

        Every member who can see the message may ask. Raises Refusal `not-found`, `invalid-request`.
        """
        entry = await self._messages.entry(actor, message_id)
        conversation = await self._store.get(Conversation, entry.conversation_id)
        members, more = await page_of(
            self._store, Member, entry.conversation_id, cursor=cursor, limit=limit, key=lambda member: member.user_id
        )
        items = []
        for member in members:
            if (
                conversation is None
                or member.user_id == entry.event.actor_id
                or member.joined_sequence >= entry.sequence
            ):
                continue
            is_own = member.user_id == actor.user_id
            reach = _Reach.READ if is_own else await _reach(self._store, conversation, member.user_id)
            items.append(await self._delivery(member, entry.sequence, reach))
        return Page(items=items, next=more)

    async def _delivery(self, member: Member, sequence: int, reach: _Reach) -> DeliveryView:
        if reach is _Reach.NOTHING:
            return DeliveryView(user_id=member.user_id, status="SENT")
        devices = await self._store.scan(
            Delivery, member.conversation_id, member.user_id, limit=limits.DEVICES_PER_USER_MAX
        )
        reached = [each.delivered_at for each in devices if each.sequence >= sequence]
        delivered_at = rfc3339(min(reached)) if reached else UNSET
        if member.read_sequence >= sequence and reach is _Reach.READ:
            return DeliveryView(
                user_id=member.user_id, status="READ", delivered_at=delivered_at, read_at=rfc3339(member.read_at)
            )
        return DeliveryView(
            user_id=member.user_id, status="DELIVERED" if reached else "SENT", delivered_at=delivered_at
        )


def _read_mark(member: Member) -> Mark:
    return Mark(member.user_id, "", member.read_sequence, member.read_at)


async def _move(
    tx: Transaction, moved: _Moved, user_id: str, device_id: str, mark: _Noted, now: int, room: _Room
) -> None:
    """Moves the marks of one device forward, and adds to `moved` who is to be told of that."""
    conversation_id = moved.conversation.conversation_id
    member = await tx.get(Member, conversation_id, user_id)
    head = await tx.get(Head, conversation_id)
    if member is None or head is None:  # they left since
        return
    delivered, read = min(mark.delivered, head.sequence), min(mark.read, head.sequence)
    if moved.conversation.encryption == "e2ee":  # an envelope is there until its device has it
        room.envelopes -= await forget_acknowledged(tx, conversation_id, device_id, delivered, room.envelopes)
    has_received = await _deliver(tx, conversation_id, user_id, device_id, delivered, now)
    has_read = read > member.read_sequence
    if has_read:
        tx.put(structs.replace(member, read_sequence=read, read_at=now))
    if moved.is_large:
        reach = _Reach.NOTHING
    else:
        reach = await _reach(tx, moved.conversation, user_id) if has_received or has_read else _Reach.NOTHING
    if has_received and reach >= _Reach.DELIVERED:
        moved.delivered.append(Mark(user_id, device_id, delivered, now))
    if has_read:
        (moved.read if reach >= _Reach.READ else moved.kept).append(Mark(user_id, device_id, read, now))


async def _deliver(
    tx: Transaction, conversation_id: str, user_id: str, device_id: str, sequence: int, now: int
) -> bool:
    """Moves a device's mark forward. True if no other device of the user was that far: then it is news."""
    marks = await tx.scan(Delivery, conversation_id, user_id, limit=limits.DEVICES_PER_USER_MAX)
    mine = next((each.sequence for each in marks if each.device_id == device_id), -1)
    if sequence <= mine:
        return False
    tx.put(Delivery(conversation_id, user_id, device_id, sequence, now))
    return sequence > max((each.sequence for each in marks), default=0)
