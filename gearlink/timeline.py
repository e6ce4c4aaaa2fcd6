"""Log entries as clients see them: an item of the history, and the frame of a live event. Pure: no store, no rights.

One entry has one form for everybody, except that the sender's own devices are also told the `tempId` they gave it, and
that `Own` adds what this user did to the message. What is not a message is a `system` message in the history and an
event of its own on the socket. What amends a message carries the message as it is now, so hearing it twice does no harm.
"""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from config import limits
from gearlink import protocol
from gearlink.clock import rfc3339
from gearlink.prekeys import encoded
from gearlink.views import (
    DoubleRatchetView,
    EnvelopeView,
    MessageView,
    PollOption,
    PollView,
    QuoteView,
    ReactionView,
    SenderKeyView,
    SettingsView,
)
from storage.events import (
    AboutMessage,
    ConversationSettings,
    ConversationUpdated,
    Letter,
    MemberChanged,
    MemberJoined,
    MemberLeft,
    Message,
    MessageDeleted,
    MessageEdited,
    MessagePinned,
    MessagesExpired,
    Plain,
    PollChanged,
    ReactionChanged,
    Said,
    Sealed,
    SilentMessage,
)
from storage.notices import Mark
from storage.records import Envelope, LogEntry


@dataclass(frozen=True, slots=True)
class Own:
    """What one user did to a message: the emojis of their reactions, the options of their vote."""

    emojis: frozenset[str]
    options: tuple[int, ...]


# --- parts of a message ----------------------------------------------------------------------------------------------


def text_of(message: Said) -> str | None:
    return message.content.text if isinstance(message.content, Plain) else None


def encrypted_view(content: Sealed, letter: Letter | Envelope | None) -> DoubleRatchetView | SenderKeyView:
    """The ciphertext as one device is told of it: `letter` is what is there for it alone."""
    if content.scheme == "sender-key":
        return SenderKeyView(key_id=content.key_id, body=encoded(content.body) if content.body else None)
    if letter is None:
        return DoubleRatchetView(envelopes=[])
    envelope = EnvelopeView(
        user_id=letter.user_id, device_id=letter.device_id, type=letter.type, body=encoded(letter.body)
    )
    return DoubleRatchetView(envelopes=[envelope])


def quote_view(quoted: LogEntry | None) -> QuoteView | None:
    """The short form of a message that is replied to; None if nothing is left of it."""
    if quoted is None or not isinstance(message := quoted.event, Message):
        return None
    text = text_of(message)
    return QuoteView(
        id=message.event_id,
        sender_id=message.actor_id,
        kind=message.kind,
        content=None if text is None else text[: limits.QUOTE_CHARS_MAX],
        sequence_number=quoted.sequence,
        deleted_at=rfc3339(message.deleted_at) if message.deleted_at else UNSET,
    )


def reaction_views(message: Message, own: Own | None = None) -> list[ReactionView]:
    """In the order in which the emojis first came."""
    return [
        ReactionView(
            emoji=tally.emoji,
            count=tally.count,
            user_ids=list(tally.user_ids),
            mine=UNSET if own is None else tally.emoji in own.emojis,
        )
        for tally in message.reactions
    ]


def poll_view(message: Message, own: Own | None = None) -> PollView:
    """The poll of a message that has one."""
    poll = message.poll
    assert poll is not None
    return PollView(
        options=[PollOption(text=text, count=count) for text, count in zip(poll.options, poll.counts, strict=True)],
        multiple=poll.multiple,
        anonymous=poll.anonymous,
        voters=poll.voters,
        closes_at=rfc3339(poll.closes_at) if poll.closes_at else None,
        closed_at=rfc3339(poll.closed_at) if poll.closed_at else None,
        my_options=UNSET if own is None else list(own.options),
    )


def settings_view(settings: ConversationSettings) -> SettingsView:
    return SettingsView(
        write=settings.write,
        pin=settings.pin,
        invite=settings.invite,
        info=settings.info,
        mention_all=settings.mention_all,
        disappearing_seconds=settings.disappearing_seconds,
        history_visible=settings.history_visible,
    )


def avatar_url(avatar_id: str) -> str | None:
    """Where the picture can be fetched; None without one."""
    return f"/api/v1/avatars/{avatar_id}" if avatar_id else None


# --- items of the history --------------------------------------------------------------------------------------------


def message_view(
    entry: LogEntry,
    for_user_id: str,
    *,
    quoted: LogEntry | UnsetType | None = None,
    own: Own | None = None,
    letter: Letter | Envelope | None = None,
) -> MessageView:
    """`entry` as an item of the history for this user; `quoted` is what it replies to, UNSET where that is not told.
    `letter` is what there is in it for the device that is told."""
    event = entry.event
    if not isinstance(event, Message) and not isinstance(event, Said):  # to be one exactly is told faster
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
    text = text_of(event)
    view = MessageView(
        id=event.event_id,
        conversation_id=entry.conversation_id,
        sender_id=event.actor_id,
        sender_device_id=event.device_id or None,
        kind=event.kind,
        content=text,
        sequence_number=entry.sequence,
        created_at=rfc3339(event.at),
    )
    if event.actor_id == for_user_id:
        view.temp_id = event.temp_id
    if text is None and isinstance(event.content, Sealed):
        view.encrypted = encrypted_view(event.content, letter)
    if isinstance(event, Message):
        _add_extras(view, event, quoted, own)
    return view


def _add_extras(view: MessageView, message: Message, quoted: LogEntry | UnsetType | None, own: Own | None) -> None:
    """Adds what a message may have besides its content. Most have none of it, and to be asked is all that it costs them."""
    if message.reactions:
        view.reactions = reaction_views(message, own)
    if message.reply_to_id:
        view.reply_to_id = message.reply_to_id
        view.reply_to = UNSET if quoted is UNSET else quote_view(quoted)
    if message.thread_id:
        view.thread_id = message.thread_id
    if message.mentions:
        view.mentions = list(message.mentions)
    if message.forwarded:
        view.forwarded = message.forwarded
    if message.poll is not None:
        view.poll = poll_view(message, own)
    if message.expires_at:
        view.expires_at = rfc3339(message.expires_at)
    if message.edited_at:
        view.edited_at = rfc3339(message.edited_at)
    if message.deleted_at:
        view.deleted_at, view.deleted_by = rfc3339(message.deleted_at), message.deleted_by or UNSET
    if message.pinned_at:
        view.pinned_at = rfc3339(message.pinned_at)


# --- frames of live events -------------------------------------------------------------------------------------------


def event_frame(
    entry: LogEntry,
    for_user_id: str = "",
    *,
    subject: LogEntry | None = None,
    own: Own | None = None,
    letter: Letter | Envelope | None = None,
) -> protocol.AnyServerFrame:
    """`entry` as it is told over a socket to this user ("" is anybody but the sender).

    `letter` is what there is in it for the device that is told. `subject` is the message that it amends, or replies to.
    Where nothing is left of an amended one, or this user may not see it, it is told as gone.
    """
    event = entry.event
    if isinstance(event, Message):
        return protocol.MessageNew(message=message_view(entry, for_user_id, quoted=subject, own=own, letter=letter))
    if isinstance(event, SilentMessage):
        return protocol.MessageNew(message=message_view(entry, for_user_id, letter=letter))
    if isinstance(event, AboutMessage):
        return _about_frame(entry, event, for_user_id, subject, own)
    if isinstance(event, MessagesExpired):
        return _expired_frame(entry, event.message_ids)
    if isinstance(event, ConversationUpdated):
        return protocol.ConversationUpdated(
            conversation_id=entry.conversation_id,
            sequence_number=entry.sequence,
            actor_id=event.actor_id,
            at=rfc3339(event.at),
            name=event.name or None,
            description=event.description or None,
            avatar_url=avatar_url(event.avatar_id),
            settings=settings_view(event.settings) if event.settings is not None else UNSET,
        )
    return _member_frame(entry, event)


def _member_frame(entry: LogEntry, event: MemberJoined | MemberChanged | MemberLeft) -> protocol.AnyServerFrame:
    conversation_id, sequence, at = entry.conversation_id, entry.sequence, rfc3339(event.at)
    match event:
        case MemberJoined():
            return protocol.MemberJoined(
                conversation_id=conversation_id, sequence_number=sequence, actor_id=event.actor_id,
                user_id=event.user_id, at=at, role=event.role, by=event.by,
            )  # fmt: skip
        case MemberChanged():
            return protocol.MemberChanged(
                conversation_id=conversation_id, sequence_number=sequence, actor_id=event.actor_id,
                user_id=event.user_id, at=at, role=event.role,
            )  # fmt: skip
        case MemberLeft():
            return protocol.MemberLeft(
                conversation_id=conversation_id, sequence_number=sequence, actor_id=event.actor_id,
                user_id=event.user_id, at=at, how=event.how,
            )  # fmt: skip


def _expired_frame(entry: LogEntry, message_ids: tuple[str, ...]) -> protocol.MessageExpired:
    return protocol.MessageExpired(
        conversation_id=entry.conversation_id, sequence_number=entry.sequence, message_ids=list(message_ids)
    )


def _about_frame(
    entry: LogEntry, event: AboutMessage, for_user_id: str, subject: LogEntry | None, own: Own | None
) -> protocol.AnyServerFrame:
    conversation_id, sequence, message_id = entry.conversation_id, entry.sequence, event.message_id
    user_id, at = event.actor_id, rfc3339(event.at)
    if isinstance(event, MessagePinned):  # also an item of the history, which is told without its subject
        form = protocol.MessagePinned if event.pinned else protocol.MessageUnpinned
        return form(
            conversation_id=conversation_id, sequence_number=sequence, message_id=message_id, user_id=user_id, at=at
        )
    if subject is None or not isinstance(message := subject.event, Message):
        return _expired_frame(entry, (message_id,))
    match event:
        case MessageEdited():
            return protocol.MessageEdited(
                conversation_id=conversation_id, sequence_number=sequence, message_id=message_id, user_id=user_id, at=at,
                content=text_of(message), edited_at=rfc3339(message.edited_at or event.at),
                message=message_view(subject, for_user_id, quoted=UNSET, own=own),
            )  # fmt: skip
        case MessageDeleted():
            return protocol.MessageDeleted(
                conversation_id=conversation_id, sequence_number=sequence, message_id=message_id, user_id=user_id,
                for_everyone=True, deleted_at=at,
            )  # fmt: skip
        case ReactionChanged():
            reaction = protocol.ReactionAdded if event.added else protocol.ReactionRemoved
            return reaction(
                conversation_id=conversation_id, sequence_number=sequence, message_id=message_id, user_id=user_id, at=at,
                emoji=event.emoji, reactions=reaction_views(message, own),
            )  # fmt: skip
        case PollChanged():
            if message.poll is None:  # it was deleted since
                return protocol.MessageDeleted(
                    conversation_id=conversation_id, sequence_number=sequence, message_id=message_id,
                    user_id=message.deleted_by, for_everyone=True, deleted_at=rfc3339(message.deleted_at),
                )  # fmt: skip
            return protocol.PollChanged(
                conversation_id=conversation_id, sequence_number=sequence, message_id=message_id,
                poll=poll_view(message, own),
            )  # fmt: skip
    return _expired_frame(entry, (message_id,))


def delivered_frame(conversation_id: str, mark: Mark) -> protocol.MessageDelivered:
    """What everybody else is told of a delivered mark."""
    return protocol.MessageDelivered(
        conversation_id=conversation_id,
        user_id=mark.user_id,
        sequence_number=mark.sequence,
        delivered_at=rfc3339(mark.at),
    )


def read_frame(conversation_id: str, mark: Mark) -> protocol.MessageRead:
    """What everybody else is told of a read mark, and the reader's own other devices."""
    return protocol.MessageRead(
        conversation_id=conversation_id,
        user_id=mark.user_id,
        sequence_number=mark.sequence,
        read_at=rfc3339(mark.at),
    )
