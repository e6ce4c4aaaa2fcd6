"""Catching up: what a device missed, read from the log and told in order, until it stands where the live events begin.

In each of the user's conversations the device's position is its cursor, else its delivered watermark. Events behind it are
read piece by piece, and the next waits until the last one was taken, so a month of absence costs no memory. Besides the
log there is what has no number and is told as it is by now: marks, and what the user did for themselves on another
device. What cannot be replayed (another epoch, a cursor ahead of the log, a long history that a new device never had) is
named in `reload`, never passed over in silence. Who listens is an `Audience`: a socket, or a call that gathers its answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio

from config import limits
from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.clock import Milliseconds
from gearlink.doorway import Doorway
from gearlink.hub import Hub, Seat, Session
from gearlink.journal import logger
from gearlink.personal import personal_frame
from gearlink.reading import read_log, told
from gearlink.timeline import delivered_frame, read_frame
from gearlink.views import ConversationView
from storage.records import Conversation, Departure, Draft, Envelope, Head, Hidden, LogEntry, Member, Membership
from storage.store import Reads

_log = logger("catchup")
_PAGE = 500  # records that are read at once, between two checkpoints
_PAGE_SEALED_EVENTS = limits.SYNC_PAGE_EVENTS * limits.CONTENT_BYTES_MAX // limits.CIPHERTEXT_BYTES_MAX
_WAITING_BYTES_MAX = 32 * 1024  # of missed events, in an outbox that has to hold the live ones as well
_LATE_MS = 60_000  # what bears an earlier time than this was durable, and told, by now


class Audience(Protocol):
    """Who is told of what was missed."""

    @property
    def actor(self) -> Actor: ...

    def come_to(self, conversation_id: str) -> bool:
        """Called before anything is read there: from now on nothing escapes it. False if it hears all of it already."""

    def leave(self, conversation_id: str) -> None:
        """The user is not in it after all."""

    def stays(self, conversation_id: str) -> bool:
        """False once it takes nothing more of the conversation that it came to last."""

    def room(self) -> int:
        """How many events it takes next; 0 if it has enough."""

    async def say(self, frame: protocol.AnyServerFrame) -> None:
        """Tells an event. May wait until there is room."""

    async def remind(self, frame: protocol.AnyServerFrame, *, again: bool = False) -> None:
        """Tells what has no number. Unless it is to be told `again`, it may know that it was told before."""

    async def introduce(self, conversation: ConversationView, *, again: bool) -> None:
        """Tells of a conversation that the device does not know, or wants to see, or knew and has to forget."""

    def wants_view(self, conversation_id: str, *, has_events: bool) -> bool:
        """Whether it also wants to see a conversation that the device knows."""

    async def taken(self) -> None:
        """Waits until what was said is taken."""

    def arrive(self, member: Member, position: int, end: int) -> bool:
        """It was told everything up to `position`, of a log that went up to `end`. True if that is all for it to read."""


async def memberships(reads: Reads, user_id: str) -> list[str]:
    """The ids of all conversations of a user, in their order."""
    found: list[str] = []
    while True:
        page = await reads.scan(Membership, user_id, after=found[-1] if found else None, limit=_PAGE)
        found += [membership.conversation_id for membership in page]
        if len(page) < _PAGE:
            return found


def safely_before(at: Milliseconds) -> Milliseconds:
    """What was not durable yet at `at` bears a time after this one."""
    return max(0, at - _LATE_MS)


class CatchUp:
    """One device's way to the present. `since` is when it was last there, for what has no number in a log.

    `is_quiet` may know that nothing without a number has moved since then, of a conversation or of a user.
    """

    def __init__(
        self,
        doorway: Doorway,
        audience: Audience,
        since: Milliseconds,
        epoch: str | None,
        cursors: Mapping[str, int] | None,
        is_quiet: Callable[[str], bool] = lambda _subject_id: False,
    ) -> None:
        self._store, self._clock, self._metrics = doorway.store, doorway.clock, doorway.metrics
        self._receipts, self._conversations = doorway.domain.receipts, doorway.domain.conversations
        self.cursors = dict(cursors or {})
        self.knows_epoch = epoch is None or epoch == doorway.store.epoch
        # What the device knew of another epoch it has to forget; and a time to come says that the clock was put back.
        self._since = since if self.knows_epoch and since <= doorway.clock.now() else 0
        self._audience, self._is_quiet = audience, is_quiet
        self.reload: list[str] = []
        self._begun: set[str] = set()  # conversations that the device begins anew, with nothing of before

    async def conversation(self, conversation_id: str) -> bool:
        """Brings the device up to date there. False if the user is not in it any more, perhaps since a moment ago."""
        audience = self._audience
        if not audience.come_to(conversation_id):  # admitted while we were reading
            return True
        member = await self._store.get(Member, conversation_id, audience.actor.user_id)
        head = await self._store.get(Head, conversation_id)
        conversation = await self._store.get(Conversation, conversation_id)  # of a deleted one it goes first
        if member is None or head is None or conversation is None:
            audience.leave(conversation_id)
            return False
        cursor = self.cursors.get(conversation_id)
        delivered = await self._receipts.delivered_to(audience.actor.user_id, audience.actor.device_id, conversation_id)
        known = delivered if cursor is None else cursor
        is_new = known is None or known < member.joined_sequence  # what was before they came back is not theirs
        if is_new:
            self._begun.add(conversation_id)
            # A device that was here before: what it has of that is not there for it any more.
            await self._introduce(conversation, member, again=cursor is not None)
        start = self._position(member, head, cursor, delivered)
        if conversation_id in self.reload and conversation.encryption == "e2ee":
            start = await self._first_readable(member, head, delivered)
        at_once = limits.SYNC_PAGE_EVENTS if conversation.encryption == "server" else _PAGE_SEALED_EVENTS
        position = await self._events(member, start, head.sequence, at_once)
        if not audience.stays(conversation_id):
            return False
        if not is_new and audience.wants_view(conversation_id, has_events=position > start):
            await self._introduce(conversation, member)
        if is_new or not self._is_quiet(conversation_id):
            await self._marks(conversation_id, 0 if is_new else self._since)
        if not is_new and 0 < member.preferences_at >= self._since:
            await audience.remind(personal_frame(member, gone=False))
        await self._hidden(member, start, position, is_new=is_new)
        return True

    async def _events(self, member: Member, position: int, end: int, at_once: int) -> int:
        """Tells what is in the log behind `position`, so many events at once; returns how far it came."""
        audience, conversation_id = self._audience, member.conversation_id
        while audience.stays(conversation_id):
            room = min(audience.room(), at_once)
            entries = await read_log(self._store, conversation_id, after=position, limit=room) if room else []
            if not entries:
                if audience.arrive(member, position, end):
                    break
                continue
            self._look_for_holes(conversation_id, position, entries)
            position = entries[-1].sequence
            for entry in entries:
                now, device_id = self._clock.now(), audience.actor.device_id
                await audience.say(await told(self._store, entry, member, now, device_id=device_id))
            await audience.taken()
        return position

    async def _marks(self, conversation_id: str, since: Milliseconds) -> None:
        """How far the others have got meanwhile, and oneself on other devices. Marks only grow, so a live one may be
        told before an older one: the larger counts."""
        await trio.lowlevel.checkpoint()
        delivered, read = await self._receipts.moved_since(conversation_id, self._audience.actor.user_id, since)
        for mark in delivered.marks:
            await self._audience.remind(delivered_frame(conversation_id, mark))
        for mark in read.marks:
            await self._audience.remind(read_frame(conversation_id, mark))

    async def _hidden(self, member: Member, start: int, position: int, *, is_new: bool) -> None:
        """What the user has deleted for themselves: among what was told just now, and meanwhile among what was before."""
        if not member.hidden_at:
            return
        conversation_id, user_id = member.conversation_id, member.user_id
        after = member.horizon if not is_new and member.hidden_at >= self._since else start
        while True:
            page = await self._store.scan(
                Hidden, conversation_id, user_id, after=after, before=position + 1, limit=_PAGE
            )
            for hidden in page:
                if hidden.sequence > start or hidden.hidden_at >= self._since:
                    await self._audience.remind(personal_frame(hidden, gone=False), again=hidden.sequence > start)
            if len(page) < _PAGE:
                return
            after = page[-1].sequence

    async def drafts(self) -> None:
        """What the user has begun to write, or given up, on another device."""
        user_id, after = self._audience.actor.user_id, None
        while self._begun or not self._is_quiet(user_id):
            page = await self._store.scan(Draft, user_id, after=after, limit=_PAGE)
            for draft in page:
                if draft.updated_at >= self._since or draft.conversation_id in self._begun:
                    await self._audience.remind(personal_frame(draft, gone=False))
            if len(page) < _PAGE:
                return
            after = page[-1].conversation_id

    async def departures(self, user_id: str) -> set[str]:
        """What the user left, was removed from, or what was deleted in the last `limits.DEPARTURE_DAYS`."""
        found = await self._store.scan(Departure, user_id, limit=limits.DEPARTURES_TOLD_MAX)
        return {departure.conversation_id for departure in found}

    def _look_for_holes(self, conversation_id: str, position: int, entries: Sequence[LogEntry]) -> None:
        """Numbers have no gaps, so one that is missing here was acknowledged and lost: never pass over that."""
        missing = entries[-1].sequence - position - len(entries)
        if missing > 0:
            self._metrics.messages_lost.inc(missing)
            _log.error("messages.lost", conversation_id=conversation_id, after=position, missing=missing)
            if conversation_id not in self.reload:
                self.reload.append(conversation_id)

    def _position(self, member: Member, head: Head, cursor: int | None, delivered: int | None) -> int:
        """Where to go on from; names the conversation in `reload` if there is no going on."""
        if not self.knows_epoch or (cursor is not None and cursor > head.sequence):
            self.reload.append(member.conversation_id)
            return head.sequence
        if cursor is not None:
            if cursor > (delivered or 0):
                self._receipts.note(self._audience.actor, member.conversation_id, delivered=cursor)
            return max(cursor, member.joined_sequence)
        if delivered is not None:
            return max(delivered, member.joined_sequence)
        if head.sequence - member.joined_sequence > limits.SYNC_FIRST_EVENTS_MAX:
            self.reload.append(member.conversation_id)
            return head.sequence
        return member.joined_sequence

    async def _first_readable(self, member: Member, head: Head, delivered: int | None) -> int:
        """Where to go on from in an encrypted conversation that has to be read again: what devices say to one another is
        in no history, and without it the device could not read the rest. What is left for it begins with an envelope."""
        actor = self._audience.actor
        known = head.sequence if delivered is None else min(delivered, head.sequence)
        if delivered is None:
            envelopes = await self._store.scan(Envelope, member.conversation_id, actor.device_id, limit=1)
            known = envelopes[0].sequence - 1 if envelopes else known
        return max(known, member.joined_sequence)

    async def _introduce(self, conversation: Conversation, member: Member, *, again: bool = False) -> None:
        device_id = self._audience.actor.device_id
        view = await self._conversations.seen_by(conversation, member, device_id, with_members=True)
        if again:
            await self._audience.say(protocol.ConversationDeleted(conversation_id=view.id))
        await self._audience.introduce(view, again=again)


# --- over a socket ---------------------------------------------------------------------------------------------------


class _Socket:
    """A session as an audience: it takes its seat before the log is read, and goes live with no checkpoint in between."""

    def __init__(self, session: Session, hub: Hub) -> None:
        self._session, self._hub = session, hub
        self._seat: Seat | None = None

    @property
    def actor(self) -> Actor:
        return self._session.actor

    def come_to(self, conversation_id: str) -> bool:
        self._seat = self._hub.take_seat(self._session, conversation_id)
        return not self._seat.live

    def leave(self, conversation_id: str) -> None:
        self._hub.leave_seat(self._session, conversation_id)

    def stays(self, conversation_id: str) -> bool:
        return not self._session.outbox.closing and self._session.seats.get(conversation_id) is self._seat

    def room(self) -> int:
        return limits.SYNC_PAGE_EVENTS

    async def say(self, frame: protocol.AnyServerFrame) -> None:
        data = protocol.frame(frame)
        if self._session.outbox.size + len(data) > _WAITING_BYTES_MAX:
            await self._session.outbox.drained()
        self._session.outbox.put(data)

    async def remind(self, frame: protocol.AnyServerFrame, *, again: bool = False) -> None:
        await self.say(frame)

    async def introduce(self, conversation: ConversationView, *, again: bool) -> None:
        """A conversation that this device was never told of begins with `conversation:created`."""
        await self.say(protocol.ConversationCreated(conversation=conversation))

    def wants_view(self, conversation_id: str, *, has_events: bool) -> bool:
        return False

    async def taken(self) -> None:
        await self._session.outbox.drained()

    def arrive(self, member: Member, position: int, end: int) -> bool:
        assert self._seat is not None
        self._seat.horizon = member.horizon
        return self._seat.go_live(position)


async def resume(
    doorway: Doorway,
    session: Session,
    since: Milliseconds,
    epoch: str | None,
    cursors: Mapping[str, int] | None,
) -> None:
    """Sends a socket what its device missed since `since`, then `sync:done`. Ends early when the session does."""
    socket = _Socket(session, doorway.hub)
    catch_up = CatchUp(doorway, socket, safely_before(since) if since else 0, epoch, cursors)
    user_id = session.actor.user_id
    gone = set(cursors or ()) | await catch_up.departures(user_id)
    for conversation_id in await memberships(doorway.store, user_id):
        if session.outbox.closing:
            return
        if not await catch_up.conversation(conversation_id):
            gone.add(conversation_id)
    for conversation_id in gone - session.seats.keys():  # left, removed or deleted while the device was away
        await socket.say(protocol.ConversationDeleted(conversation_id=conversation_id))
    await catch_up.drafts()
    if (remaining := await doorway.domain.keyring.low(session.actor)) is not None:
        await socket.say(protocol.KeysLow(one_time_remaining=remaining))
    reload = {"reload": catch_up.reload} if catch_up.reload else {}
    session.say(protocol.SyncDone(complete=not catch_up.reload, **reload))
