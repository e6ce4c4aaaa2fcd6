"""Which messages somebody may see: the door to everything that is done with a single message.

To those who may not see it a message does not exist: strangers, those who came later to a conversation that does not
show its history, those who deleted it for themselves, and everybody once its time has run out. It works the same over
the store and inside a change. It knows neither what is done with the message nor how it is shown.
"""

from dataclasses import dataclass

from gearlink.clock import Milliseconds
from gearlink.errors import NOT_FOUND, Refusal
from gearlink.reading import is_expired, message_entry
from gearlink.rights import Right, enter
from storage.events import Message
from storage.records import Conversation, Hidden, LogEntry, Member
from storage.store import Reads


@dataclass(frozen=True, slots=True)
class Sight:
    """A message as somebody finds it: `message` is the event of `entry`, `member` their place in its conversation."""

    conversation: Conversation
    member: Member
    entry: LogEntry
    message: Message


async def is_visible(
    reads: Reads, entry: LogEntry, member: Member, now: Milliseconds, *, hidden_too: bool = False
) -> bool:
    """True if `entry` is a message that this member of its conversation may see. A tombstone is seen like any other;
    what they deleted for themselves only with `hidden_too`."""
    if not isinstance(entry.event, Message) or entry.sequence <= member.horizon or is_expired(entry, now):
        return False
    if hidden_too or not member.hidden_at:  # they never hid one: most never do
        return True
    return await reads.get(Hidden, entry.conversation_id, member.user_id, entry.sequence) is None


async def visible_message(
    reads: Reads, user_id: str, message_id: str, right: Right, now: Milliseconds, *, hidden_too: bool = False
) -> Sight:
    """The message, for somebody who may see it (`hidden_too`: or did, before they deleted it for themselves) and has
    `right` in its conversation.

    Raises Refusal `not-found` if they may not see it or there is none; `forbidden`, `refused-by-privacy` as `enter` does.
    """
    entry = await message_entry(reads, message_id)
    if entry is None:
        raise Refusal(NOT_FOUND)
    conversation, member = await enter(reads, user_id, entry.conversation_id, Right.READ)
    message = entry.event
    if not isinstance(message, Message) or not await is_visible(reads, entry, member, now, hidden_too=hidden_too):
        raise Refusal(NOT_FOUND)
    if right is not Right.READ:
        await enter(reads, user_id, entry.conversation_id, right)
    return Sight(conversation, member, entry, message)
