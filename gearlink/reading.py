"""Reading a log: its two tables as one story in order, and each entry as one user may see it.

The history and what amends it lie in tables of their own, so that a page of the history costs the same however often its
messages were edited or reacted to. A message whose time has run out is never shown from here on, whether or not upkeep
has come by to remove it. This module reads; who may read is settled by `gearlink.rights` before.
"""

from collections.abc import Sequence
from heapq import merge

from config import limits
from gearlink import protocol
from gearlink.clock import Milliseconds
from gearlink.timeline import Own, event_frame, message_view
from gearlink.views import MessageView
from storage.events import (
    AboutMessage,
    Message,
    MessageEdited,
    MessageExpired,
    PollChanged,
    ReactionChanged,
    Said,
    Sealed,
)
from storage.records import Amendment, Envelope, LogEntry, Member, MessageIndex, Reaction, Vote
from storage.store import Reads

_NOBODY = Own(frozenset(), ())


def is_expired(entry: LogEntry, now: Milliseconds) -> bool:
    """True for a message whose time has run out."""
    event = entry.event
    return isinstance(event, Message) and 0 < event.expires_at <= now


async def read_log(reads: Reads, conversation_id: str, *, after: int, limit: int) -> list[LogEntry]:
    """The events behind `after`, in order, at most `limit`."""
    history = await reads.scan(LogEntry, conversation_id, after=after, limit=limit)
    amendments: Sequence[LogEntry] = await reads.scan(Amendment, conversation_id, after=after, limit=limit)
    if not amendments:
        return history
    return list(merge(history, amendments, key=lambda entry: entry.sequence))[:limit]


async def message_entry(reads: Reads, message_id: str) -> LogEntry | None:
    """The message of this id, if there is one."""
    index = await reads.get(MessageIndex, message_id)
    return None if index is None else await reads.get(LogEntry, index.conversation_id, index.sequence)


async def subject_of(reads: Reads, entry: LogEntry) -> LogEntry | None:
    """The message that `entry` amends, or replies to, as it is now."""
    event = entry.event
    if isinstance(event, AboutMessage) and not isinstance(event, MessageExpired):
        return await reads.get(LogEntry, entry.conversation_id, event.message_sequence)
    if isinstance(event, Message) and event.reply_to_id:
        return await message_entry(reads, event.reply_to_id)
    return None


async def own_of(reads: Reads, message: Message, user_id: str) -> Own:
    """What this user did to a message."""
    emojis: frozenset[str] = frozenset()
    if message.reactions:
        found = await reads.scan(Reaction, message.event_id, user_id, limit=limits.REACTIONS_PER_USER_MAX)
        emojis = frozenset(reaction.emoji for reaction in found)
    vote = await reads.get(Vote, message.event_id, user_id) if message.poll is not None else None
    return Own(emojis, vote.options if vote is not None else ()) if emojis or vote is not None else _NOBODY


async def letter_of(reads: Reads, entry: LogEntry, device_id: str) -> Envelope | None:
    """What only this device can read of an encrypted message, if it is there and was not dropped."""
    event = entry.event
    if not isinstance(event, Said) or not isinstance(event.content, Sealed):
        return None
    if device_id not in event.content.devices:
        return None
    return await reads.get(Envelope, entry.conversation_id, device_id, entry.sequence)


async def shown(
    reads: Reads, entry: LogEntry, member: Member, now: Milliseconds, *, device_id: str = ""
) -> MessageView:
    """`entry` as an item of the history for this member, with what it replies to and what the member did to it, and with
    what is there for this device of theirs alone."""
    event = entry.event
    if not isinstance(event, Message):
        return message_view(entry, member.user_id, letter=await letter_of(reads, entry, device_id))
    quoted = await _seen_subject(reads, entry, member, now) if event.reply_to_id else None
    own = await own_of(reads, event, member.user_id) if event.reactions or event.poll is not None else None
    letter = await letter_of(reads, entry, device_id) if isinstance(event.content, Sealed) else None
    return message_view(entry, member.user_id, quoted=quoted, own=own, letter=letter)


async def told(
    reads: Reads, entry: LogEntry, member: Member, now: Milliseconds, *, device_id: str = ""
) -> protocol.AnyServerFrame:
    """`entry` as this device of the member is told of it later: what it amends is told as it is by now, or not at all where
    that was before the member's time."""
    user_id = member.user_id
    if is_expired(entry, now):
        gone = MessageExpired(
            entry.event.event_id, entry.event.actor_id, entry.event.at, entry.event.event_id, entry.sequence
        )
        return event_frame(LogEntry(entry.conversation_id, entry.sequence, gone))
    event = entry.event
    letter = await letter_of(reads, entry, device_id)
    if not isinstance(event, AboutMessage) and not (isinstance(event, Message) and event.reply_to_id):
        if isinstance(event, Message) and (event.reactions or event.poll is not None):
            return event_frame(entry, user_id, own=await own_of(reads, event, user_id), letter=letter)
        return event_frame(entry, user_id, letter=letter)
    subject = await _seen_subject(reads, entry, member, now)
    about = event if isinstance(event, Message) else subject.event if subject is not None else None
    own = None
    if isinstance(event, Message | MessageEdited | ReactionChanged | PollChanged) and isinstance(about, Message):
        own = await own_of(reads, about, user_id)
    return event_frame(entry, user_id, subject=subject, own=own, letter=letter)


async def _seen_subject(reads: Reads, entry: LogEntry, member: Member, now: Milliseconds) -> LogEntry | None:
    """The message that `entry` is about, unless it has disappeared or was before the member's time."""
    subject = await subject_of(reads, entry)
    return None if subject is None or subject.sequence <= member.horizon or is_expired(subject, now) else subject
