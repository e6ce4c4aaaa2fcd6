"""Log entries as clients see them: an item of the history, and the frame of a live event.

One entry has one form for everybody, except that the sender's own devices are also told the `tempId` they gave it. What is
not a message is a `system` message in the history and an event of its own on the socket. It is pure: no store, no rights.
"""

from msgspec import UNSET

from gearlink import protocol
from gearlink.clock import rfc3339
from gearlink.protocol import MessageView
from storage.records import ConversationUpdated, LogEntry, Mark, MemberChanged, MemberJoined, MemberLeft, Message, Plain


def message_view(entry: LogEntry, for_user_id: str) -> MessageView:
    """`entry` as an item of the history for this user."""
    event = entry.event
    if not isinstance(event, Message):
        return MessageView(
            id=event.event_id,
            conversation_id=entry.conversation_id,
            sender_id=event.actor_id,
            sender_device_id=None,
            kind="system",
            content=protocol.encode(event_frame(entry)).decode(),
            sequence_number=entry.sequence,
            created_at=rfc3339(event.at),
        )
    return MessageView(
        id=event.event_id,
        conversation_id=entry.conversation_id,
        sender_id=event.actor_id,
        sender_device_id=event.device_id,
        kind=event.kind,
        content=event.content.text if isinstance(event.content, Plain) else None,
        sequence_number=entry.sequence,
        created_at=rfc3339(event.at),
        temp_id=event.temp_id if event.actor_id == for_user_id else UNSET,
        reply_to_id=event.reply_to_id or UNSET,
        mentions=list(event.mentions) if event.mentions else UNSET,
    )


def event_frame(entry: LogEntry, for_user_id: str = "") -> protocol.AnyServerFrame:
    """`entry` as it is told over a socket to this user ("" is anybody but the sender)."""
    event = entry.event
    match event:
        case Message():
            return protocol.MessageNew(message=message_view(entry, for_user_id))
        case ConversationUpdated():
            return protocol.ConversationUpdated(
                conversation_id=entry.conversation_id,
                sequence_number=entry.sequence,
                actor_id=event.actor_id,
                at=rfc3339(event.at),
                name=event.name or None,
                description=event.description or None,
            )
        case MemberLeft():
            return protocol.MemberLeft(
                conversation_id=entry.conversation_id,
                sequence_number=entry.sequence,
                actor_id=event.actor_id,
                user_id=event.user_id,
                at=rfc3339(event.at),
            )
        case MemberJoined() | MemberChanged():
            form = protocol.MemberJoined if isinstance(event, MemberJoined) else protocol.MemberChanged
            return form(
                conversation_id=entry.conversation_id,
                sequence_number=entry.sequence,
                actor_id=event.actor_id,
                user_id=event.user_id,
                at=rfc3339(event.at),
                role=event.role,
            )


def delivered_frame(conversation_id: str, mark: Mark) -> bytes:
    """What everybody else is told of a delivered mark."""
    return protocol.frame(
        protocol.MessageDelivered(
            conversation_id=conversation_id,
            user_id=mark.user_id,
            sequence_number=mark.sequence,
            delivered_at=rfc3339(mark.at),
        )
    )


def read_frame(conversation_id: str, mark: Mark) -> bytes:
    """What everybody else is told of a read mark, and the reader's own other devices."""
    return protocol.frame(
        protocol.MessageRead(
            conversation_id=conversation_id,
            user_id=mark.user_id,
            sequence_number=mark.sequence,
            read_at=rfc3339(mark.at),
        )
    )
