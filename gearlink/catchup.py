"""Catching up: what a device missed, read from the log and sent in order, until it stands where the live events begin.

For each of the user's conversations the device's position is its cursor from the `auth` frame, else its delivered
watermark. Events behind it are read piece by piece, and the next waits until the socket has taken the last one, so a
month of absence costs no memory. Caught up, the seat goes live with no checkpoint in between: no gap, no repetition. What
cannot be replayed (another epoch, a cursor ahead of the log, a long history that a new device never had) is named in
`reload`, never passed over in silence.
"""

from collections.abc import Mapping, Sequence

import trio

from config import limits
from gearlink import protocol
from gearlink.clock import Milliseconds
from gearlink.doorway import Doorway
from gearlink.hub import Seat, Session
from gearlink.journal import logger
from gearlink.timeline import delivered_frame, event_frame, read_frame
from storage.records import Conversation, Departure, Head, LogEntry, Member, Membership

_log = logger("catchup")
_MEMBERSHIPS_PER_PAGE = 500
_WAITING_BYTES_MAX = 32 * 1024  # of missed events, in an outbox that has to hold the live ones as well


class CatchUp:
    """One session's resume. `since` is when its device was last here, for the marks that moved meanwhile."""

    def __init__(self, doorway: Doorway, session: Session, since: Milliseconds) -> None:
        self._store, self._receipts, self._hub = doorway.store, doorway.receipts, doorway.hub
        self._conversations, self._metrics = doorway.conversations, doorway.metrics
        self._session, self._since = session, since
        self._reload: list[str] = []

    async def run(self, epoch: str | None, cursors: Mapping[str, int] | None) -> None:
        """Sends what was missed, then `sync:done`. Ends early when the session does."""
        known_epoch, user_id = epoch is None or epoch == self._store.epoch, self._session.actor.user_id
        cursors, gone = cursors or {}, set(cursors or ())
        departures = await self._store.scan(Departure, user_id, limit=limits.DEPARTURES_TOLD_MAX)
        gone.update(departure.conversation_id for departure in departures)
        after: str | None = None
        while True:
            memberships = await self._store.scan(Membership, user_id, after=after, limit=_MEMBERSHIPS_PER_PAGE)
            for membership in memberships:
                conversation_id = membership.conversation_id
                if self._session.outbox.closing:
                    return
                if await self._conversation(conversation_id, cursors.get(conversation_id), known_epoch=known_epoch):
                    gone.discard(conversation_id)
                else:
                    gone.add(conversation_id)
            if len(memberships) < _MEMBERSHIPS_PER_PAGE or self._session.outbox.closing:
                break
            after = memberships[-1].conversation_id
        for conversation_id in gone - self._session.seats.keys():  # left, removed or deleted while the device was away
            await self._say(protocol.frame(protocol.ConversationDeleted(conversation_id=conversation_id)))
        reload = {"reload": self._reload} if self._reload else {}
        self._session.say(protocol.SyncDone(complete=not self._reload, **reload))

    async def _conversation(self, conversation_id: str, cursor: int | None, *, known_epoch: bool) -> bool:
        """Brings the device up to date there. False if the user is not in it any more, perhaps since a moment ago."""
        user_id = self._session.actor.user_id
        seat = self._hub.take_seat(self._session, conversation_id)
        if seat.live:  # admitted while we were reading
            return True
        member = await self._store.get(Member, conversation_id, user_id)
        head = await self._store.get(Head, conversation_id)
        if member is None or head is None:
            return False
        delivered = await self._receipts.delivered_to(user_id, self._session.actor.device_id, conversation_id)
        is_new = cursor is None and delivered is None
        if is_new:
            await self._introduce(member)
        position = self._position(member, head, cursor, delivered, known_epoch=known_epoch)
        while self._seated(seat):
            entries = await self._store.scan(LogEntry, conversation_id, after=position, limit=limits.SYNC_PAGE_EVENTS)
            if not entries:
                if seat.go_live(position):
                    break
                continue
            self._look_for_holes(conversation_id, position, entries)
            position = entries[-1].sequence
            for entry in entries:
                await self._say(protocol.frame(event_frame(entry, user_id)))
            await self._session.outbox.drained()
        if not self._seated(seat):
            return False
        await self._marks(conversation_id, 0 if is_new else self._since)
        return True

    async def _marks(self, conversation_id: str, since: Milliseconds) -> None:
        """How far the others have got meanwhile, and oneself on other devices. Marks only grow, so a live one may be
        told before an older one: the larger counts."""
        await trio.lowlevel.checkpoint()
        delivered, read = await self._receipts.moved_since(conversation_id, self._session.actor.user_id, since)
        for mark in delivered.marks:
            await self._say(delivered_frame(conversation_id, mark))
        for mark in read.marks:
            await self._say(read_frame(conversation_id, mark))

    async def _say(self, frame: bytes) -> None:
        if self._session.outbox.size + len(frame) > _WAITING_BYTES_MAX:
            await self._session.outbox.drained()
        self._session.outbox.put(frame)

    def _look_for_holes(self, conversation_id: str, position: int, entries: Sequence[LogEntry]) -> None:
        """Numbers have no gaps, so one that is missing here was acknowledged and lost: never pass over that."""
        missing = entries[-1].sequence - position - len(entries)
        if missing:
            self._metrics.messages_lost.inc(missing)
            _log.error("messages.lost", conversation_id=conversation_id, after=position, missing=missing)
            if conversation_id not in self._reload:
                self._reload.append(conversation_id)

    def _seated(self, seat: Seat) -> bool:
        """False once the session ended or was taken out of the conversation while it read."""
        return not self._session.outbox.closing and self._session.seats.get(seat.room.conversation_id) is seat

    def _position(
        self, member: Member, head: Head, cursor: int | None, delivered: int | None, *, known_epoch: bool
    ) -> int:
        """Where to go on from; names the conversation in `reload` if there is no going on."""
        if not known_epoch or (cursor is not None and cursor > head.sequence):
            self._reload.append(member.conversation_id)
            return head.sequence
        if cursor is not None:
            if cursor > (delivered or 0):
                self._receipts.note(self._session.actor, member.conversation_id, delivered=cursor)
            return max(cursor, member.joined_sequence)
        if delivered is not None:
            return max(delivered, member.joined_sequence)
        if head.sequence - member.joined_sequence > limits.SYNC_FIRST_EVENTS_MAX:
            self._reload.append(member.conversation_id)
            return head.sequence
        return member.joined_sequence

    async def _introduce(self, member: Member) -> None:
        """A conversation that this device was never told of begins with `conversation:created`."""
        conversation = await self._store.get(Conversation, member.conversation_id)
        if conversation is not None:
            view = await self._conversations.seen_by(conversation, member, with_members=True)
            await self._say(protocol.frame(protocol.ConversationCreated(conversation=view)))
