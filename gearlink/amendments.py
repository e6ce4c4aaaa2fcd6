"""What becomes of a message: edits, deletion for everyone or for oneself, pins.

Each is one change in the store's writer that rewrites the message and adds an event to the log, and each may be asked for
twice: what is so already is not done again. A deletion for everyone takes away for good what the message said, before it
is told; a tombstone keeps its place. What others did to a popular message can be more rows than one change may hold: a
few go at once, the rest is left to a timer (`Due` "forget", done by `Amendments.forget`). Nobody can see it meanwhile,
because what is shown of a message comes from the message. It knows no socket.
"""

from msgspec import structs

from config import limits
from config.settings import Settings
from gearlink import contents
from gearlink.accounts import Actor
from gearlink.calls import EditForm
from gearlink.ciphertexts import forget_message
from gearlink.clock import Clock, Milliseconds, new_id, rfc3339
from gearlink.cursors import decode_sequence, encode_cursor
from gearlink.errors import FORBIDDEN, MESSAGE_DELETED, MUST_BE_ENCRYPTED, TOO_LATE, TOO_MANY, Refusal, invalid
from gearlink.messages import CLOSE_POLL, check_mentions, drop_mentions, put_mentions, still_visible
from gearlink.pressure import Load, Pressure
from gearlink.protocol import Edit
from gearlink.reading import shown
from gearlink.rights import Right, enter, holders
from gearlink.storms import settle
from gearlink.threads import forget_reply
from gearlink.throttle import Budget
from gearlink.views import MessageView, Page, RevisionView
from gearlink.visibility import Sight, visible_message
from storage.events import Message, MessageDeleted, MessageEdited, MessagePinned, Plain
from storage.notices import Personal
from storage.records import (
    Conversation,
    Due,
    Hidden,
    LogEntry,
    Member,
    Pin,
    Reaction,
    Revision,
    Vote,
)
from storage.store import Store, Transaction

FORGET = "forget"  # of `Due.what`
_HOUR: Milliseconds = 3_600_000


class Amendments:
    """The rules of changing messages over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget, settings: Settings, pressure: Pressure) -> None:
        self._store, self._clock, self._budget, self._pressure = store, clock, budget, pressure
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over how long messages can be edited and deleted."""
        self._edit_hours, self._delete_hours = settings.limits.edit_hours, settings.limits.delete_hours

    # --- edits -------------------------------------------------------------------------------------------------------

    async def edit(self, actor: Actor, message_id: str, form: EditForm | Edit) -> MessageView:
        """Another text or caption; without `mentions` those stay as they are. What is so already is not news.

        Raises Refusal `not-found`; `forbidden` for all but its author; `message-deleted`, `too-late`,
        `must-be-encrypted`, `refused-by-privacy`, `rate-limited`, `overloaded`, and `invalid-request`, also for a kind
        whose content is no text.
        """
        size = len(form.content.encode())
        self._pressure.check(Load.MESSAGES)
        self._budget.check(actor, size)
        contents.check_size(form.content)
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[LogEntry, Member]:
            sight = await visible_message(tx, actor.user_id, message_id, Right.SEND, now)
            _check_author(sight)
            entry, message = sight.entry, sight.message
            mentions = message.mentions if form.mentions is None else tuple(dict.fromkeys(form.mentions))
            if (message.content, message.mentions) == (Plain(form.content), mentions):
                return entry, sight.member
            if self._edit_hours and now >= message.at + self._edit_hours * _HOUR:
                raise Refusal(TOO_LATE)
            await check_mentions(tx, sight.conversation, sight.member, mentions, known=message.mentions)
            edited = structs.replace(message, content=Plain(form.content), mentions=mentions, edited_at=now)
            await _keep_revision(tx, message)
            drop_mentions(tx, entry.conversation_id, entry.sequence, message.mentions)
            put_mentions(tx, entry.conversation_id, entry.sequence, edited)
            event = MessageEdited(new_id(), actor.user_id, now, message_id, entry.sequence)
            return await _amend(tx, entry, edited, event), sight.member

        return await shown(self._store, *await self._store.write(change), now)

    async def revisions(self, actor: Actor, message_id: str, limit: int, cursor: str | None) -> Page[RevisionView]:
        """What the message said before each of its edits, oldest first; at most the last `limits.REVISIONS_MAX`.

        Raises Refusal `not-found`, `invalid-request`.
        """
        after, now = decode_sequence(cursor) if cursor else None, self._clock.now()
        await visible_message(self._store, actor.user_id, message_id, Right.READ, now)
        found = await self._store.scan(Revision, message_id, after=after, limit=limit + 1)
        items = [
            RevisionView(number=each.number, content=each.content.text, written_at=rfc3339(each.written_at))
            for each in found[:limit]
            if isinstance(each.content, Plain)
        ]
        return Page(items=items, next=encode_cursor(str(found[limit - 1].number)) if len(found) > limit else None)

    # --- deletion ----------------------------------------------------------------------------------------------------

    async def delete(self, actor: Actor, message_id: str, *, for_everyone: bool) -> None:
        """Takes the message away: what it said, from everybody for good; or all of it, from the caller's own sight.

        For everyone its author can, in the time that the settings give, and who may delete what others wrote. Raises
        Refusal `not-found`, `forbidden`, `too-late`, `rate-limited`.
        """
        self._budget.check(actor, 0)
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            sight = await visible_message(tx, actor.user_id, message_id, Right.READ, now, hidden_too=True)
            if not for_everyone:
                await _hide(tx, actor, sight, now)
                return
            self._check_deletion(sight, now)
            entry, message = sight.entry, sight.message
            if message.deleted_at:
                return
            await erase(tx, entry, message, now)
            tombstone = structs.replace(
                message,
                content=None,
                poll=None,
                reactions=(),
                mentions=(),
                media_ids=(),
                pinned_at=0,
                deleted_at=now,
                deleted_by=actor.user_id,
            )
            await _amend(tx, entry, tombstone, MessageDeleted(new_id(), actor.user_id, now, message_id, entry.sequence))

        await self._store.write(change)

    def _check_deletion(self, sight: Sight, now: Milliseconds) -> None:
        message = sight.message
        if sight.member.role in holders(sight.conversation, Right.MODERATE):
            return
        if message.actor_id != sight.member.user_id:
            raise Refusal(FORBIDDEN)
        if self._delete_hours and not message.deleted_at and now >= message.at + self._delete_hours * _HOUR:
            raise Refusal(TOO_LATE)

    async def forget(self, message_id: str) -> None:
        """What a `Due` "forget" asks for: the rest of what others did to a message that is gone."""

        async def change(tx: Transaction) -> bool:
            return await forget(tx, message_id)

        while await self._store.write(change):
            pass

    # --- pins --------------------------------------------------------------------------------------------------------

    async def pin(self, actor: Actor, message_id: str, *, pinned: bool) -> None:
        """Puts the message up for all members, or takes it down; what is so already is not news.

        Raises Refusal `not-found`, `forbidden`, `refused-by-privacy`, `rate-limited`, `message-deleted`, and `too-many`
        where `limits.PINS_MAX` are pinned.
        """
        self._budget.check(actor, 0)
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            sight = await visible_message(tx, actor.user_id, message_id, Right.PIN, now)
            conversation, entry, message = sight.conversation, sight.entry, sight.message
            if pinned and message.deleted_at:
                raise Refusal(MESSAGE_DELETED)
            if bool(message.pinned_at) == pinned:
                return
            if pinned:
                if conversation.pin_count >= limits.PINS_MAX:
                    raise Refusal(TOO_MANY)
                tx.put(Pin(entry.conversation_id, entry.sequence, message_id, actor.user_id, now))
                tx.put(structs.replace(conversation, pin_count=conversation.pin_count + 1))
            else:
                await _unpin(tx, entry)
            changed = structs.replace(message, pinned_at=now if pinned else 0)
            event = MessagePinned(new_id(), actor.user_id, now, message_id, entry.sequence, pinned)
            await _amend(tx, entry, changed, event)

        await self._store.write(change)

    async def pins(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[MessageView]:
        """The pinned messages that the caller can see, the newest message first. Raises Refusal `not-found`."""
        before, now = decode_sequence(cursor) if cursor else None, self._clock.now()
        _conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        found = await self._store.scan(
            Pin, conversation_id, after=member.horizon, before=before, limit=limit + 1, reverse=True
        )
        entries = [await self._store.get(LogEntry, conversation_id, each.sequence) for each in found[:limit]]
        there = [entry for entry in entries if entry is not None]
        items = [
            await shown(self._store, entry, member, now, device_id=actor.device_id)
            for entry in await still_visible(self._store, member, there, now)
        ]
        return Page(items=items, next=encode_cursor(str(found[limit - 1].sequence)) if len(found) > limit else None)


# --- what hangs on a message -----------------------------------------------------------------------------------------


async def erase(tx: Transaction, entry: LogEntry, message: Message, now: Milliseconds) -> None:
    """Removes what hangs on the message of `entry`, which the caller then rewrites or replaces.

    That is its envelopes, what it said before its edits, whom it mentioned, its place in a thread, its pin, and what
    others did to it: of that at most `limits.ERASED_ROWS_MAX` of each kind; the rest falls to a `Due` "forget".
    """
    conversation_id, sequence = entry.conversation_id, entry.sequence
    if message.edited_at:
        for revision in await tx.scan(Revision, message.event_id, limit=limits.REVISIONS_MAX):
            tx.delete(Revision, message.event_id, revision.number)
    forget_message(tx, entry, message)
    drop_mentions(tx, conversation_id, sequence, message.mentions)
    if message.thread_id:
        await forget_reply(tx, conversation_id, message.thread_id, sequence)
    if message.pinned_at:
        await _unpin(tx, entry)
    if message.poll is not None and message.poll.closes_at:
        tx.delete(Due, message.poll.closes_at, CLOSE_POLL, message.event_id, 0)
    await settle(tx, message.event_id)
    if await forget(tx, message.event_id):
        tx.put(Due(now, FORGET, message.event_id, 0))


async def forget(tx: Transaction, message_id: str) -> bool:
    """Removes some of what others did to a message that was deleted or has expired. True if there is more of it."""
    reactions = await tx.scan(Reaction, message_id, limit=limits.ERASED_ROWS_MAX)
    for reaction in reactions:
        tx.delete(Reaction, message_id, reaction.user_id, reaction.emoji)
    votes = await tx.scan(Vote, message_id, limit=limits.ERASED_ROWS_MAX)
    for vote in votes:
        tx.delete(Vote, message_id, vote.user_id)
    return limits.ERASED_ROWS_MAX in (len(reactions), len(votes))


async def _keep_revision(tx: Transaction, message: Message) -> None:
    """What the message says until now, as a revision; the oldest makes room."""
    assert message.content is not None
    newest = await tx.scan(Revision, message.event_id, limit=1, reverse=True)
    number = newest[0].number + 1 if newest else 1
    tx.put(Revision(message.event_id, number, message.content, message.edited_at or message.at))
    if number > limits.REVISIONS_MAX:
        tx.delete(Revision, message.event_id, number - limits.REVISIONS_MAX)


def _check_author(sight: Sight) -> None:
    """Whether the caller may edit this message at all, whatever it is to say."""
    message = sight.message
    if message.actor_id != sight.member.user_id:
        raise Refusal(FORBIDDEN, "Only its author can edit a message")
    if message.deleted_at:
        raise Refusal(MESSAGE_DELETED)
    if sight.conversation.encryption == "e2ee":
        raise Refusal(MUST_BE_ENCRYPTED)
    if message.kind not in contents.EDITABLE:
        raise invalid("content", "what a message of this kind says cannot be changed")


async def _hide(tx: Transaction, actor: Actor, sight: Sight, now: Milliseconds) -> None:
    entry = sight.entry
    if await tx.get(Hidden, entry.conversation_id, actor.user_id, entry.sequence):
        return
    hidden = Hidden(entry.conversation_id, actor.user_id, entry.sequence, entry.event.event_id, now)
    tx.put(hidden)
    tx.put(structs.replace(sight.member, hidden_at=now))
    tx.announce(Personal((actor.user_id,), hidden, but_device_id=actor.device_id))


async def _unpin(tx: Transaction, entry: LogEntry) -> None:
    tx.delete(Pin, entry.conversation_id, entry.sequence)
    conversation = await tx.get(Conversation, entry.conversation_id)
    if conversation is not None:
        tx.put(structs.replace(conversation, pin_count=conversation.pin_count - 1))


async def _amend(
    tx: Transaction, entry: LogEntry, message: Message, event: MessageEdited | MessageDeleted | MessagePinned
) -> LogEntry:
    """The entry with the message as it is from now on, written and told along with the event."""
    amended = LogEntry(entry.conversation_id, entry.sequence, message)
    await tx.append(entry.conversation_id, event, amended)
    return amended
