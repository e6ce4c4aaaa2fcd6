"""What the log of a conversation holds: messages, what happened to its members, and what became of earlier messages.

An event is written once and never moved. A message is the exception that keeps history without joins: an edit, a
reaction or a vote is an event of its own and also rewrites the message that it is about; a deletion takes the content out
of it for good. `Plain` content can be read by the server; `Sealed` content cannot. They are different types, so that
nothing but `Plain` can ever reach search or the transcoder. Fields are only ever appended, with a default.
"""

from typing import Literal

import msgspec

ConversationType = Literal["direct", "group", "channel"]
Encryption = Literal["server", "e2ee"]
Role = Literal["owner", "admin", "member"]
Audience = Literal["everyone", "contacts", "nobody"]
Reach = Literal["everyone", "admins", "owners"]
DeviceType = Literal["ios", "android", "web", "desktop", "bot"]
EnvelopeType = Literal["prekey", "message"]
ArchiveKind = Literal["backup", "transfer"]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Base of what stands inside a record or an event."""


class Plain(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Content that the server may read, index and transcode."""

    text: str


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """Ciphertext. The server stores it and hands it on, and can do nothing else with it.

    Either one `body` for all who have the sender key `key_id`, empty once it was dropped; or an envelope for each of
    `devices`, which stand apart from the message (`storage.records.Envelope`).
    """

    scheme: str
    body: bytes
    key_id: str = ""
    devices: tuple[str, ...] = ()


class Letter(Part, frozen=True):
    """What is to go into the envelope of one device."""

    user_id: str
    device_id: str
    type: EnvelopeType
    body: bytes


class Tally(Part, frozen=True):
    """How many reacted with one emoji; `user_ids` are the first of them (`limits.REACTORS_SHOWN_MAX`)."""

    emoji: str
    count: int
    user_ids: tuple[str, ...]


class Poll(Part, frozen=True):
    """What the question in the message's content can be answered with, and was: `counts` are the votes for each option,
    `voters` the people behind them.

    `closes_at` is when it closes by itself, 0 for never; `closed_at` when it did.
    """

    options: tuple[str, ...]
    multiple: bool
    anonymous: bool
    closes_at: int
    counts: tuple[int, ...]
    voters: int = 0
    closed_at: int = 0


class ConversationSettings(Part, frozen=True):
    """Who may do what in a group or channel, and for how long messages stay there (seconds, 0 for ever)."""

    write: Reach = "everyone"
    pin: Reach = "admins"
    invite: Reach = "admins"
    info: Reach = "admins"
    mention_all: Reach = "admins"
    disappearing_seconds: int = 0
    history_visible: bool = False


# --- events ----------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Base of what the log holds. `event_id` is the message id for messages; `actor_id` caused it."""

    event_id: str
    actor_id: str
    at: int


class Said(Event, frozen=True):
    """Base of what a device says to the others. `temp_id` is the sender's own name for it and is told to nobody else."""

    device_id: str
    kind: str
    content: Plain | Sealed | None
    temp_id: str


class Message(Said, frozen=True, tag="m"):
    """Without content it is a tombstone.

    `thread_id` is the message that its chain of replies began with; `forwarded` how often it was handed on; `expires_at`
    when it disappears, 0 for never; `deleted_by` who took it away for everyone. "all" among `mentions` is everybody.
    """

    device_id: str
    kind: str
    content: Plain | Sealed | None
    temp_id: str
    reply_to_id: str = ""
    mentions: tuple[str, ...] = ()
    media_ids: tuple[str, ...] = ()
    thread_id: str = ""
    forwarded: int = 0
    expires_at: int = 0
    edited_at: int = 0
    deleted_at: int = 0
    deleted_by: str = ""
    pinned_at: int = 0
    reactions: tuple[Tally, ...] = ()
    poll: Poll | None = None


class SilentMessage(Said, frozen=True, tag="q"):
    """What programs say to one another, encrypted: told like a message, and no item of the history."""


class MemberJoined(Event, frozen=True, tag="j"):
    """`by` says which way they came: added by somebody, over a link, or let in on request."""

    user_id: str
    role: Role
    by: Literal["added", "link", "request"] = "added"


class MemberLeft(Event, frozen=True, tag="l"):
    """`how`: left by themselves, was removed or banned by the actor, or the account was deleted."""

    user_id: str
    how: Literal["left", "removed", "banned", "erased"] = "left"


class MemberChanged(Event, frozen=True, tag="c"):
    user_id: str
    role: Role


class ConversationUpdated(Event, frozen=True, tag="u"):
    """The state after the change. Early ones did not have settings."""

    name: str
    description: str
    avatar_id: str = ""
    settings: ConversationSettings | None = None


class AboutMessage(Event, frozen=True):
    """Base of what happened to an earlier message of the same log, which was rewritten along with it."""

    message_id: str
    message_sequence: int


class MessagePinned(AboutMessage, frozen=True, tag="n"):
    """The message was pinned, or with `pinned` false taken down. It shows in the history."""

    pinned: bool


class MessageEdited(AboutMessage, frozen=True, tag="e"):
    """The message has other content from now on."""


class MessageDeleted(AboutMessage, frozen=True, tag="d"):
    """The message has no content any more."""


class ReactionChanged(AboutMessage, frozen=True, tag="r"):
    """The actor added or took back a reaction. In a storm it stands for others before it: the message has them all."""

    emoji: str
    added: bool


class PollChanged(AboutMessage, frozen=True, tag="v"):
    """Somebody voted, or the poll was closed: the message has the result."""


class MessageExpired(AboutMessage, frozen=True, tag="g"):
    """Stands where a disappearing message stood, with its number; nothing else is left of it."""


class MessagesExpired(Event, frozen=True, tag="x"):
    """These messages of the log have disappeared."""

    message_ids: tuple[str, ...]


AmendingEvent = (
    MessageEdited | MessageDeleted | ReactionChanged | PollChanged | MessageExpired | MessagesExpired | SilentMessage
)
"""What is told on sockets but is no item of the history."""

LogEvent = Message | MemberJoined | MemberLeft | MemberChanged | ConversationUpdated | MessagePinned | AmendingEvent
