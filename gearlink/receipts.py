"""Receipts: watermarks that say how far a conversation has reached a device (delivered) and a person (read).

A mark is one small record a device or member, never one a message, and never moves backwards. Marks from sockets gather
for a moment and are stored together, in one change for everybody, and told only then: so a room in which fifty people
acknowledge each message costs one write. What is lost in a crash is a few marks, and the device is sent a little again.
`deliveries` computes the state of one message from the marks.
"""

from dataclasses import dataclass

import trio
from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import Clock, rfc3339
from gearlink.conversations import Right, decode_cursor, encode_cursor, enter
from gearlink.errors import INVALID_REQUEST, Refusal
from gearlink.journal import logger
from gearlink.messages import Messages
from gearlink.protocol import DeliveryView, Page
from storage.records import Conversation, Delivered, Delivery, Head, Mark, Member, Read
from storage.store import Store, StoreError, Transaction

_log = logger("receipts")
_MARKS_PER_CHANGE_MAX = 1000
_DELIVERIES_MAX = limits.RECEIPTS_TOLD_MEMBERS_MAX * limits.DEVICES_PER_USER_MAX
_Key = tuple[str, str, str]  # conversation, user, device


@dataclass(slots=True)
class _Noted:
    delivered: int = 0
    read: int = 0


class Receipts:
    """Owned by one task: `run`. `acknowledge` and `note_read` only take a note of it."""

    def __init__(self, store: Store, clock: Clock, messages: Messages) -> None:
        self._store, self._clock, self._messages = store, clock, messages
        self._pending: dict[_Key, _Noted] = {}  # bounded by devices online times their conversations
        self._wanted = trio.Event()

    async def acknowledge(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """Everything up to `sequence` reached this device. Raises Refusal `not-found` for a stranger."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        self.note(actor, conversation_id, delivered=sequence)

    async def note_read(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """This user has read up to `sequence`. Raises Refusal `not-found` for a stranger."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        self.note(actor, conversation_id, delivered=sequence, read=sequence)

    async def mark_read(self, actor: Actor, conversation_id: str, sequence: int) -> None:
        """Like `note_read`, and returns once it is stored."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        await self._store_marks({(conversation_id, actor.user_id, actor.device_id): _Noted(sequence, sequence)})

    def note(self, actor: Actor, conversation_id: str, *, delivered: int = 0, read: int = 0) -> None:
        """Takes a mark of a member whose membership was checked; marks only grow."""
        key = (conversation_id, actor.user_id, actor.device_id)
        mark = self._pending.setdefault(key, _Noted())
        mark.delivered, mark.read = max(mark.delivered, delivered), max(mark.read, read)
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stores what gathers, every `RECEIPTS_FLUSH_SECONDS` while there is something."""
        task_status.started()
        while True:
            await self._wanted.wait()
            await trio.sleep(limits.RECEIPTS_FLUSH_SECONDS)
            await self.flush()

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

        async def change(tx: Transaction) -> None:
            delivered: dict[str, list[Mark]] = {}
            read: dict[str, list[Mark]] = {}
            for (conversation_id, user_id, device_id), mark in marks.items():
                member = await tx.get(Member, conversation_id, user_id)
                head = await tx.get(Head, conversation_id)
                if member is None or head is None:
                    continue
                sequence = min(mark.delivered, head.sequence)
                if await _deliver(tx, conversation_id, user_id, device_id, sequence, now):
                    delivered.setdefault(conversation_id, []).append(Mark(user_id, device_id, sequence, now))
                if (sequence := min(mark.read, head.sequence)) > member.read_sequence:
                    tx.put(structs.replace(member, read_sequence=sequence, read_at=now))
                    read.setdefault(conversation_id, []).append(Mark(user_id, device_id, sequence, now))
            for conversation_id, moved in delivered.items():
                conversation = await tx.get(Conversation, conversation_id)
                if conversation is not None and conversation.member_count <= limits.RECEIPTS_TOLD_MEMBERS_MAX:
                    tx.announce(Delivered(conversation_id, tuple(moved)))
            for conversation_id, moved in read.items():
                tx.announce(Read(conversation_id, tuple(moved)))

        await self._store.write(change)

    async def moved_since(self, conversation_id: str, user_id: str, since: int) -> tuple[Delivered, Read]:
        """The marks that moved at or after `since` (wall time), for a device of `user_id` that was away.

        Both without any where there are too many members for marks to be told.
        """
        members = await self._store.scan(Member, conversation_id, limit=limits.RECEIPTS_TOLD_MEMBERS_MAX + 1)
        if len(members) > limits.RECEIPTS_TOLD_MEMBERS_MAX:
            return Delivered(conversation_id, ()), Read(conversation_id, ())
        read = [
            Mark(each.user_id, "", each.read_sequence, each.read_at)
            for each in members
            if each.read_at and each.read_at >= since
        ]
        furthest: dict[str, Mark] = {}
        for each in await self._store.scan(Delivery, conversation_id, limit=_DELIVERIES_MAX):
            known = furthest.get(each.user_id)
            if each.user_id != user_id and (known is None or each.sequence > known.sequence):
                furthest[each.user_id] = Mark(each.user_id, each.device_id, each.sequence, each.delivered_at)
        delivered = [mark for mark in furthest.values() if mark.at >= since and mark.sequence]
        return Delivered(conversation_id, tuple(delivered)), Read(conversation_id, tuple(read))

    async def delivered_to(self, user_id: str, device_id: str, conversation_id: str) -> int | None:
        """The delivered watermark of a device; None if it was never in this conversation."""
        delivery = await self._store.get(Delivery, conversation_id, user_id, device_id)
        return None if delivery is None else delivery.sequence

    async def deliveries(self, actor: Actor, message_id: str, limit: int, cursor: str | None) -> Page[DeliveryView]:
        """How far a message got, for each member but its sender and those who came later.

        Raises Refusal `not-found`, `invalid-request`.
        """
        entry = await self._messages.entry(actor, message_id)
        after = decode_cursor(cursor, 1)[0] if cursor else None
        try:
            members = await self._store.scan(Member, entry.conversation_id, after=after, limit=limit + 1)
        except ValueError:
            errors = [{"path": "cursor", "message": "not a cursor of this list"}]
            raise Refusal(INVALID_REQUEST, errors=errors) from None
        items = [
            await self._delivery(member, entry.sequence)
            for member in members[:limit]
            if member.user_id != entry.event.actor_id and member.joined_sequence < entry.sequence
        ]
        return Page(items=items, next=encode_cursor(members[limit - 1].user_id) if len(members) > limit else None)

    async def _delivery(self, member: Member, sequence: int) -> DeliveryView:
        devices = await self._store.scan(
            Delivery, member.conversation_id, member.user_id, limit=limits.DEVICES_PER_USER_MAX
        )
        reached = [each.delivered_at for each in devices if each.sequence >= sequence]
        delivered_at = rfc3339(min(reached)) if reached else UNSET
        if member.read_sequence >= sequence:
            return DeliveryView(
                user_id=member.user_id, status="READ", delivered_at=delivered_at, read_at=rfc3339(member.read_at)
            )
        status = "DELIVERED" if reached else "SENT"
        return DeliveryView(user_id=member.user_id, status=status, delivered_at=delivered_at)  # type: ignore[arg-type]


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
