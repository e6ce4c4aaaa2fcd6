"""What goes over the wire, whichever door it takes: the forms of ids and texts, and every thing that the server shows.

What a client sends is refused when it has unknown keys, wrong types or sizes over `config.limits`; what the server shows
may grow, so the SDK ignores keys that it does not know. Because every field is typed, nesting deeper than the form is
refused by the decoder itself. There is no I/O here and no rule about who may see what.
"""

from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits

T = TypeVar("T")
UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
UUID_PATTERN: Final = f"^{UUID}$"
ALL: Final = "all"  # among the mentions: everybody
Id = Annotated[
    str, Meta(pattern=UUID_PATTERN, max_length=36, description="UUIDv7")
]  # `$` alone lets a final newline in
Sequence = Annotated[int, Meta(ge=0, le=limits.SEQUENCE_MAX)]
TempId = Annotated[str, Meta(min_length=1, max_length=limits.TEMP_ID_CHARS_MAX)]
Ref = Annotated[str, Meta(max_length=limits.REF_CHARS_MAX)]
Content = Annotated[str, Meta(min_length=1, max_length=limits.CONTENT_BYTES_MAX)]
Mentioned = Annotated[str, Meta(pattern=f"^({ALL}|{UUID})$", max_length=36, description="a user's id, or `all`")]
Mentions = Annotated[list[Mentioned], Meta(max_length=limits.MENTIONS_MAX)]
MediaIds = Annotated[list[Id], Meta(max_length=limits.MEDIA_PER_MESSAGE_MAX)]
Emoji = Annotated[str, Meta(min_length=1, max_length=limits.EMOJI_CHARS_MAX)]
ExpiresIn = Annotated[
    int, Meta(ge=limits.EXPIRY_SECONDS_MIN, le=limits.EXPIRY_SECONDS_MAX, description="seconds until it disappears")
]
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Description = Annotated[str, Meta(max_length=limits.DESCRIPTION_CHARS_MAX)]
Nickname = Annotated[str, Meta(max_length=limits.DISPLAY_NAME_CHARS_MAX)]
Token = Annotated[str, Meta(min_length=1, max_length=limits.TOKEN_CHARS_MAX)]
Timestamp = Annotated[str, Meta(description="RFC 3339, UTC, milliseconds")]
Role = Literal["owner", "admin", "member"]
Reach = Literal["everyone", "admins", "owners"]
Audience = Literal["everyone", "contacts", "nobody"]
DeviceType = Literal["ios", "android", "web", "desktop", "bot"]
ConversationType = Literal["direct", "group", "channel"]
Encryption = Literal["server", "e2ee"]
ArchiveKind = Literal["backup", "transfer"]
DecryptionReason = Literal[
    "no-session", "unknown-pre-key", "bad-message", "no-sender-key", "bad-signature", "no-envelope", "expired",
    "unreadable-letter", "misdirected", "unknown-device",
]  # fmt: skip
"""Why a device could not read something: `docs/encryption.md`, "When something cannot be read"."""
SendKind = Literal["text", "image", "video", "audio", "voice", "file", "location", "contact", "poll"]
SilentKind = Literal["key-distribution", "control"]
"""What programs say to one another, encrypted: it has a number, and is no item of the history."""
EnvelopeType = Literal["prekey", "message"]
CIPHERTEXT_CHARS_MAX: Final = -(-limits.CIPHERTEXT_BYTES_MAX * 4 // 3)
_END: Final = "$(?![\\s\\S])"  # in Python `$` also matches before a line break at the end
SenderKeyId = Annotated[
    str, Meta(pattern=f"^[A-Za-z0-9_-]{{1,{limits.KEY_ID_CHARS_MAX}}}{_END}", max_length=limits.KEY_ID_CHARS_MAX)
]
DevicesDigest = Annotated[
    str, Meta(pattern=f"^[A-Za-z0-9_-]{{43}}{_END}", max_length=43, description="32 bytes in base64url without padding")
]
Ciphertext = Annotated[
    str, Meta(min_length=2, max_length=CIPHERTEXT_CHARS_MAX, description="canonical base64url without padding")
]


class Request(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of what clients send over REST: a typo never passes silently."""


class Answer(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=False):
    """Base of what the server sends. Fields that are UNSET are left out."""


class Page(Answer, Generic[T]):
    """A list: `next` is an opaque cursor, null at the end."""

    items: list[T]
    next: str | None = None


class DeviceRef(Answer):
    """A device, by whose it is. In a refusal `stale-devices` it stands among those that lack an envelope, that should
    have none, or whose identity key is another one."""

    user_id: str
    device_id: str


class Problem(Answer):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    correlation_id: str
    errors: list[dict[str, str]] | UnsetType = UNSET
    version: int | UnsetType = UNSET
    missing: list[DeviceRef] | UnsetType = UNSET
    extra: list[DeviceRef] | UnsetType = UNSET
    changed: list[DeviceRef] | UnsetType = UNSET


# --- people ----------------------------------------------------------------------------------------------------------


class User(Answer):
    """A user as others see them; what comes after `is_deleted` only in one's own. Of a deleted one only the id is left."""

    id: str
    username: str | None
    display_name: str
    bio: str
    created_at: Timestamp
    avatar_url: str | None = None
    is_deleted: bool | UnsetType = UNSET
    phone_number: str | UnsetType = UNSET
    is_admin: bool | UnsetType = UNSET
    is_suspended: bool | UnsetType = UNSET


class Device(Answer):
    id: str
    name: str
    type: DeviceType
    created_at: Timestamp
    last_seen_at: Timestamp
    current: bool
    signed_in: bool


class SignedPreKeyView(Answer):
    key_id: int
    public_key: str
    signature: str


class OneTimePreKeyView(Answer):
    key_id: int
    public_key: str


class DeviceBundle(Answer):
    """What it takes to open a session with a device: a one-time pre-key, or the last-resort one if there is none."""

    device_id: str
    identity_key: str
    signed_pre_key: SignedPreKeyView
    one_time_pre_key: OneTimePreKeyView | UnsetType = UNSET
    last_resort_pre_key: SignedPreKeyView | UnsetType = UNSET
    certificate: str | UnsetType = UNSET


class ClaimedKeys(Answer):
    """`accountKey` is there if the user has one; then each device has a certificate under it."""

    devices: list[DeviceBundle]
    account_key: str | UnsetType = UNSET


class DeviceIdentity(Answer):
    device_id: str
    identity_key: str
    identity_changed_at: Timestamp | UnsetType = UNSET
    certificate: str | UnsetType = UNSET


class DeviceIdentities(Answer):
    devices: list[DeviceIdentity]
    account_key: str | UnsetType = UNSET
    account_key_changed_at: Timestamp | UnsetType = UNSET


class ConversationDevice(Answer):
    """A device for which messages of a conversation are encrypted."""

    user_id: str
    device_id: str
    identity_key: str
    certificate: str | UnsetType = UNSET


class ConversationDevices(Answer):
    """All of them, in the order of the digest, and the account keys of those members who have one."""

    digest: str
    account_keys: dict[str, str]
    devices: list[ConversationDevice]


class KeyStatus(Answer):
    """What the server holds of the calling device; `digest` is null if it published no keys."""

    one_time_remaining: int
    digest: str | None


class ArchiveView(Answer):
    """Something encrypted that a user keeps here; chunks are numbered from 0. `device_id` made it."""

    archive_id: str
    kind: ArchiveKind
    device_id: str
    chunk_count: int
    size_bytes: int
    created_at: Timestamp
    updated_at: Timestamp
    expires_at: Timestamp | UnsetType = UNSET


class PrivacyView(Answer):
    """What a user lets others see and do."""

    read_receipts: bool
    last_seen: Audience
    add_to_groups: Audience
    find_by_number: Audience
    receipts_to_strangers: bool


class ContactView(Answer):
    user: User
    nickname: str | None
    added_at: Timestamp


class BlockView(Answer):
    user: User
    blocked_at: Timestamp


# --- messages --------------------------------------------------------------------------------------------------------


class ReactionView(Answer):
    """How many reacted so; `user_ids` are the first of them. `mine` is left out where an event is told to many."""

    emoji: str
    count: int
    user_ids: list[str]
    mine: bool | UnsetType = UNSET


class ReactorView(Answer):
    user_id: str
    emoji: str
    at: Timestamp


class QuoteView(Answer):
    """The short form of the message that another one replies to, as it is now."""

    id: str
    sender_id: str
    kind: str
    content: str | None
    sequence_number: int
    deleted_at: Timestamp | UnsetType = UNSET


class PollOption(Answer):
    text: str
    count: int


class PollView(Answer):
    """The question is the message's content. `my_options` is left out where an event is told to many."""

    options: list[PollOption]
    multiple: bool
    anonymous: bool
    voters: int
    closes_at: Timestamp | None
    closed_at: Timestamp | None
    my_options: list[int] | UnsetType = UNSET


class VoteView(Answer):
    user_id: str
    options: list[int]
    at: Timestamp


class RevisionView(Answer):
    """What a message said before its edit of this number."""

    number: int
    content: str
    written_at: Timestamp


class EnvelopeView(Answer):
    """What one device alone can read."""

    user_id: str
    device_id: str
    type: EnvelopeType
    body: str


class DoubleRatchetView(Answer, tag_field="scheme", tag="double-ratchet"):
    """`envelopes` holds the one of the device that is told; none where there is none for it, or it was dropped."""

    envelopes: list[EnvelopeView]


class SenderKeyView(Answer, tag_field="scheme", tag="sender-key"):
    """One body for all; `body` is null once it was dropped."""

    key_id: str
    body: str | None


class MessageView(Answer):
    """A message. `temp_id` is there for its sender's own devices only. What the server sent by itself has no device: a
    system message, or one that was scheduled."""

    id: str
    conversation_id: str
    sender_id: str
    sender_device_id: str | None
    kind: str
    content: str | None
    sequence_number: int
    created_at: Timestamp
    reactions: list[ReactionView] = []
    temp_id: str | UnsetType = UNSET
    reply_to_id: str | UnsetType = UNSET
    reply_to: QuoteView | UnsetType | None = UNSET
    thread_id: str | UnsetType = UNSET
    mentions: list[str] | UnsetType = UNSET
    forwarded: int | UnsetType = UNSET
    poll: PollView | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    edited_at: Timestamp | UnsetType = UNSET
    deleted_at: Timestamp | UnsetType = UNSET
    deleted_by: str | UnsetType = UNSET
    pinned_at: Timestamp | UnsetType = UNSET
    encrypted: DoubleRatchetView | SenderKeyView | UnsetType = UNSET


class ThreadView(Answer):
    """A chain of replies and the message that it began with."""

    root: MessageView
    reply_count: int
    unread_count: int
    last_reply: MessageView | None


class ThreadPage(Answer):
    """A page of a thread's replies. `root` is null where the caller may not see the message that it began with, or it
    has expired; then `reply_count` counts the replies that they may see."""

    root: MessageView | None
    reply_count: int
    unread_count: int
    items: list[MessageView]
    next: str | None = None


class ScheduledView(Answer):
    """A message that waits for its time. `trouble` is the code of the refusal, if it could not go out."""

    id: str
    conversation_id: str
    send_at: Timestamp
    created_at: Timestamp
    temp_id: str
    kind: str
    content: str
    reply_to_id: str | UnsetType = UNSET
    mentions: list[str] | UnsetType = UNSET
    trouble: str | UnsetType = UNSET


class DeliveryView(Answer):
    user_id: str
    status: Literal["SENT", "DELIVERED", "READ"]
    delivered_at: Timestamp | UnsetType = UNSET
    read_at: Timestamp | UnsetType = UNSET


# --- conversations ---------------------------------------------------------------------------------------------------


class SettingsView(Answer):
    """Who may write, pin, invite, change name and description, and mention everybody; how long messages stay, 0 for ever."""

    write: Reach
    pin: Reach
    invite: Reach
    info: Reach
    mention_all: Reach
    disappearing_seconds: int
    history_visible: bool


class MemberView(Answer):
    user_id: str
    role: Role
    joined_at: Timestamp


class DraftView(Answer):
    conversation_id: str
    content: str | None
    reply_to_id: str | None
    updated_at: Timestamp


class ConversationView(Answer):
    """A conversation as the caller sees it. `sequence_number` is the newest event; `members` is there up to 200 of them."""

    id: str
    type: ConversationType
    encryption: Encryption
    name: str | None
    description: str | None
    created_by: str
    created_at: Timestamp
    updated_at: Timestamp
    role: Role
    member_count: int
    sequence_number: int
    read_sequence_number: int
    unread_count: int
    last_message: MessageView | None
    members: list[MemberView] | UnsetType = UNSET
    mention_count: int = 0
    avatar_url: str | None = None
    settings: SettingsView | UnsetType = UNSET
    pin_count: int = 0
    muted_until: Timestamp | None = None
    archived: bool = False
    pinned_at: Timestamp | None = None
    join_request_count: int | UnsetType = UNSET


class RosterStatement(Answer):
    """One link of the chain that says who is in an encrypted group: the exact text, and the signature over it."""

    version: int
    statement: str
    signature: str


class BanView(Answer):
    user_id: str
    banned_by: str
    banned_at: Timestamp


class JoinLinkView(Answer):
    """A link that lets people in; `uses_max` and `expires_at` are null where there is no end."""

    id: str
    code: str
    created_by: str
    created_at: Timestamp
    expires_at: Timestamp | None
    uses_max: int | None
    uses: int
    needs_approval: bool


class LinkPreview(Answer):
    """What somebody with a link sees before they join."""

    conversation_id: str
    type: ConversationType
    name: str | None
    description: str | None
    avatar_url: str | None
    member_count: int
    needs_approval: bool
    is_member: bool


class JoinAnswer(Answer):
    status: Literal["joined", "requested"]
    conversation: ConversationView | None


class JoinRequestView(Answer):
    conversation_id: str
    user_id: str
    requested_at: Timestamp
