"""Catching up: what a device missed, read from the log and sent in order, until it stands where the live events begin.

For each of the user's conversations the device's position is its cursor from the `auth` frame, else its delivered
watermark. Events behind it are read piece by piece, and the next waits until the socket has taken the last one, so a
month of absence costs no memory. Caught up, the seat goes live with no checkpoint in between: no gap, no repetition. What
cannot be replayed (another epoch, a cursor ahead of the log, a long history that a new device never had) is named in
`reload`, never passed over in silence.
"""

from collections.abc import Mapping, Sequence

from config import limits
from gearlink import protocol
from gearlink.conversations import fresh_view
from gearlink.hub import Hub, Seat, Session
from gearlink.journal import Metrics, logger
from gearlink.receipts import Receipts
from gearlink.timeline import event_frame
from storage.records import Admitted, Conversation, Head, LogEntry, Member, Membership
from storage.store import Store

_log = logger("catchup")
_MEMBERSHIPS_PER_PAGE = 500
_WAITING_BYTES_MAX = 32 * 1024  # of missed events, in an outbox that has to hold the live ones as well


class CatchUp:
    """One session's resume."""

    def __init__(self, store: Store, receipts: Receipts, hub: Hub, session: Session, metrics: Metrics) -> None:
        self._store, self._receipts, self._hub, self._session = store, receipts, hub, session
        self._metrics = metrics
        self._reload: list[str] = []

    async def run(self, epoch: str | None, cursors: Mapping[str, int] | None) -> None:
        """Sends what was missed, then `sync:done`. Ends early when the session does."""
        known_epoch = epoch is None or epoch == self._store.epoch
        cursors, gone = cursors or {}, set(cursors or ())
        after: str | None = None
        while True:
            memberships = await self._store.scan(
                Membership, self._session.actor.user_id, after=after, limit=_MEMBERSHIPS_PER_PAGE
            )
            for membership in memberships:
                conversation_id = membership.conversation_id
                gone.discard(conversation_id)
                await self._conversation(conversation_id, cursors.get(conversation_id), known_epoch=known_epoch)
            if len(memberships) < _MEMBERSHIPS_PER_PAGE or self._session.outbox.closing:
                break
            after = memberships[-1].conversation_id
        for conversation_id in gone - self._session.seats.keys():  # left, removed or deleted while the device was away
            await self._say(protocol.frame(protocol.ConversationDeleted(conversation_id=conversation_id)))
        reload = {"reload": self._reload} if self._reload else {}
        self._session.say(protocol.SyncDone(complete=not self._reload, **reload))

    async def _conversation(self, conversation_id: str, cursor: int | None, *, known_epoch: bool) -> None:
        actor = self._session.actor
        seat = self._hub.take_seat(self._session, conversation_id)
        if seat.live:  # admitted while we were reading
            return
        member = await self._store.get(Member, conversation_id, actor.user_id)
        head = await self._store.get(Head, conversation_id)
        if member is None or head is None:
            return
        position = await self._position(member, head, cursor, known_epoch=known_epoch)
        while self._seated(seat):
            entries = await self._store.scan(LogEntry, conversation_id, after=position, limit=limits.SYNC_PAGE_EVENTS)
            if not entries:
                if seat.go_live(position):
                    return
                continue
            self._look_for_holes(conversation_id, position, entries)
            position = entries[-1].sequence
            for entry in entries:
                await self._say(protocol.frame(event_frame(entry, actor.user_id)))
            await self._session.outbox.drained()

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
            self._reload.append(conversation_id)

    def _seated(self, seat: Seat) -> bool:
        """False once the session ended or was taken out of the conversation while it read."""
        return not self._session.outbox.closing and self._session.seats.get(seat.room.conversation_id) is seat

    async def _position(self, member: Member, head: Head, cursor: int | None, *, known_epoch: bool) -> int:
        """Where to go on from; names the conversation in `reload` if there is no going on."""
        actor = self._session.actor
        delivered = await self._receipts.delivered_to(actor.user_id, actor.device_id, member.conversation_id)
        if not known_epoch or (cursor is not None and cursor > head.sequence):
            self._reload.append(member.conversation_id)
            return head.sequence
        if cursor is not None:
            if cursor > (delivered or 0):
                self._receipts.note(actor, member.conversation_id, delivered=cursor)
            return max(cursor, member.joined_sequence)
        if delivered is not None:
            return max(delivered, member.joined_sequence)
        await self._introduce(member, head)
        if head.sequence - member.joined_sequence > limits.SYNC_FIRST_EVENTS_MAX:
            self._reload.append(member.conversation_id)
            return head.sequence
        return member.joined_sequence

    async def _introduce(self, member: Member, head: Head) -> None:
        """A conversation that this device was never told of begins with `conversation:created`."""
        conversation = await self._store.get(Conversation, member.conversation_id)
        if conversation is None:
            return
        members: list[Member] = []
        if conversation.member_count <= limits.MEMBERS_SHOWN_MAX:
            members = await self._store.scan(Member, member.conversation_id, limit=limits.MEMBERS_SHOWN_MAX)
        introduced = Admitted(conversation, (member,), tuple(members), head.sequence)
        self._session.say(protocol.ConversationCreated(conversation=fresh_view(introduced, member)))
