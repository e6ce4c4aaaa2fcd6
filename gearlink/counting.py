"""How much of a conversation its member has not read: messages of others, and those that name them.

Both are counted from what is stored, never kept, so they are right after any crash. What was deleted, has disappeared or
was hidden by the member does not count. It reads; who may read is settled before.
"""

from config import limits
from gearlink.clock import Milliseconds
from gearlink.reading import is_expired
from storage.events import Message
from storage.records import Head, Hidden, LogEntry, Member, Mention
from storage.store import Reads


async def unread(reads: Reads, member: Member, head: Head, now: Milliseconds) -> int:
    """The messages of others behind the read mark; at most `limits.UNREAD_COUNT_MAX`.

    It looks at `limits.UNREAD_SCAN_EVENTS_MAX` items at most, so a member who has not read for very long, in a
    conversation of little but their own messages, may be told fewer.
    """
    after, count = _read_by(member), 0
    for _step in range(limits.UNREAD_SCAN_EVENTS_MAX // limits.SYNC_PAGE_EVENTS):
        if head.message_sequence <= after or count >= limits.UNREAD_COUNT_MAX:
            break
        entries = await reads.scan(LogEntry, member.conversation_id, after=after, limit=limits.SYNC_PAGE_EVENTS)
        if not entries:
            break
        hidden = await _hidden(reads, member, after, entries[-1].sequence)
        count += sum(_counts(entry, member, now) and entry.sequence not in hidden for entry in entries)
        after = entries[-1].sequence
    return min(count, limits.UNREAD_COUNT_MAX)


async def mentions(reads: Reads, member: Member, now: Milliseconds) -> int:
    """The messages of others behind the read mark that name the member or everybody; at most
    `limits.UNREAD_COUNT_MAX`."""
    after, found = _read_by(member), set[int]()
    for named in (member.user_id, member.conversation_id):
        rows = await reads.scan(Mention, member.conversation_id, named, after=after, limit=limits.UNREAD_COUNT_MAX)
        found |= {row.sequence for row in rows if row.sender_id != member.user_id and not 0 < row.expires_at <= now}
    if found:
        found -= await _hidden(reads, member, after, max(found))
    return min(len(found), limits.UNREAD_COUNT_MAX)


def _read_by(member: Member) -> int:
    """What was there before somebody came is not unread, also where they may see it."""
    return max(member.read_sequence, member.joined_sequence)


def _counts(entry: LogEntry, member: Member, now: Milliseconds) -> bool:
    event = entry.event
    return (
        isinstance(event, Message)
        and event.actor_id != member.user_id
        and not event.deleted_at
        and not is_expired(entry, now)
    )


async def _hidden(reads: Reads, member: Member, after: int, last: int) -> set[int]:
    if not member.hidden_at:
        return set()
    rows = await reads.scan(
        Hidden, member.conversation_id, member.user_id, after=after, before=last + 1, limit=last - after
    )
    return {row.sequence for row in rows}
