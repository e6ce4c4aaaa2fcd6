"""What is stored: one frozen struct for each kind of record.

Records are written as MessagePack arrays behind a version byte, so a field may be appended with a default and never
renamed in place, moved or removed without a migration. Ids are UUIDv7 text, times are milliseconds since the epoch. What
the log holds is in `storage.events`, what a commit tells the house in `storage.notices`. This module knows nothing of
keys, engines or rules.
"""

import msgspec
from msgspec import structs

from storage.events import (
    AmendingEvent,
    ArchiveKind,
    Audience,
    ConversationSettings,
    ConversationType,
    DeviceType,
    Encryption,
    EnvelopeType,
    Letter,
    LogEvent,
    Message,
    Plain,
    PollChanged,
    ReactionChanged,
    Role,
    Sealed,
)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of everything that has a table (`storage.keys.TABLES`)."""


# --- people ----------------------------------------------------------------------------------------------------------


class Account(Record, frozen=True):
    """A user. `phone_number` is E.164 and told to nobody but its owner.

    Suspended: nothing is done with or by it, everything is kept. Deleted: gone for everybody, erased at `erase_at`, and
    until then its owner may take that back. `contact_count` and `block_count` are how many there are, to bound them.
    """

    user_id: str
    phone_number: str
    created_at: int
    updated_at: int
    is_admin: bool = False
    username: str = ""
    display_name: str = ""
    bio: str = ""
    avatar_id: str = ""
    suspended_at: int = 0
    deleted_at: int = 0
    erase_at: int = 0
    contact_count: int = 0
    block_count: int = 0

    @property
    def is_active(self) -> bool:
        """Neither suspended nor deleted."""
        return not (self.suspended_at or self.deleted_at)


class PhoneNumber(Record, frozen=True):
    """SHA-256 of the E.164 number, to its account: unique, and what contact discovery asks for."""

    phone_hash: bytes
    user_id: str


class Username(Record, frozen=True):
    """The username in lower case, to its account: unique."""

    username: str
    user_id: str


class Device(Record, frozen=True):
    """A device of a user. An empty `session_id` means signed out; a token or socket of another session is dead.

    `is_admin` repeats what the account says, so that one read tells who a caller is. `connected_at` is when a socket of
    it was last noted: what moved since then it may not have been told.
    """

    user_id: str
    device_id: str
    name: str
    type: DeviceType
    created_at: int
    last_seen_at: int
    session_id: str = ""
    is_admin: bool = False
    connected_at: int = 0


class DeviceOwner(Record, frozen=True):
    """Whose a device id is, for ever: nobody else may take it, also after the device was removed."""

    device_id: str
    user_id: str


class RefreshToken(Record, frozen=True):
    """SHA-256 of a refresh token. A used one is kept until it expires, because seeing it again means theft."""

    token_hash: bytes
    user_id: str
    device_id: str
    session_id: str
    expires_at: int
    used: bool = False


class Verification(Record, frozen=True):
    """One attempt to prove a phone number. The code is kept as a salted hash only."""

    verification_id: str
    phone_number: str
    salt: bytes
    code_hash: bytes
    expires_at: int
    tries_left: int


class Invite(Record, frozen=True):
    """SHA-256 of an invite code that admits one newcomer."""

    code_hash: bytes
    created_at: int
    expires_at: int
    created_by: str = ""
    used_by: str = ""


class SigningKey(Record, frozen=True):
    """An Ed25519 key that signs access tokens (RFC 8037); the newest one signs, all stored ones verify."""

    kid: str
    private_key: bytes
    created_at: int
    expires_at: int


class UsernameHold(Record, frozen=True):
    """A username that was given up: until `expires_at` only its last holder may take it, so that nobody poses as them."""

    username: str
    user_id: str
    expires_at: int


class Privacy(Record, frozen=True):
    """What a user lets others see and do. Who never changed it has no record."""

    user_id: str
    read_receipts: bool = True
    last_seen: Audience = "everyone"
    add_to_groups: Audience = "everyone"
    find_by_number: Audience = "everyone"
    receipts_to_strangers: bool = True


class LastSeen(Record, frozen=True):
    """When the user's last socket was closed. It is all that is ever stored of presence."""

    user_id: str
    at: int


class Contact(Record, frozen=True):
    """Somebody in a user's address book, under a name of the user's choice ("" for none)."""

    user_id: str
    contact_id: str
    nickname: str
    added_at: int
    changed_at: int


class Block(Record, frozen=True):
    """`user_id` wants to have nothing to do with `blocked_id`."""

    user_id: str
    blocked_id: str
    blocked_at: int


class Avatar(Record, frozen=True):
    """A picture of a user or a conversation, without metadata. Another picture has another id."""

    avatar_id: str
    owner_id: str
    mime_type: str
    data: bytes


# --- conversations ---------------------------------------------------------------------------------------------------


class Conversation(Record, frozen=True):
    """`is_blocked`: a direct one, and one of the two has blocked the other. Without settings it has those of its type."""

    conversation_id: str
    type: ConversationType
    encryption: Encryption
    name: str
    description: str
    created_by: str
    created_at: int
    updated_at: int
    member_count: int
    owner_count: int
    settings: ConversationSettings | None = None
    avatar_id: str = ""
    is_blocked: bool = False
    request_count: int = 0
    pin_count: int = 0


class DirectPair(Record, frozen=True):
    """The one direct conversation of two users; `low_id` < `high_id` as text."""

    low_id: str
    high_id: str
    conversation_id: str


class Member(Record, frozen=True):
    """A user in a conversation, with the read watermark and what they have set for themselves.

    Events up to `joined_sequence` were before their time. `muted_until` and `pinned_at` are times, 0 for not;
    `preferences_at` and `hidden_at` say when the settings changed and when a message was last hidden, for devices that
    were away. `has_written` is kept in direct conversations only.
    """

    conversation_id: str
    user_id: str
    role: Role
    joined_at: int
    joined_sequence: int
    read_sequence: int = 0
    read_at: int = 0
    sees_history: bool = False
    muted_until: int = 0
    archived: bool = False
    pinned_at: int = 0
    preferences_at: int = 0
    hidden_at: int = 0
    has_written: bool = False

    @property
    def horizon(self) -> int:
        """Events up to this one are not for the member's eyes."""
        return 0 if self.sees_history else self.joined_sequence


class Membership(Record, frozen=True):
    """The same fact as `Member`, found from the user's side."""

    user_id: str
    conversation_id: str


class Departure(Record, frozen=True):
    """The user is not in this conversation any more; told to devices that come back, until it expires."""

    user_id: str
    conversation_id: str
    expires_at: int


class Ban(Record, frozen=True):
    """The user may not come back by any way until somebody lifts this."""

    conversation_id: str
    user_id: str
    banned_by: str
    banned_at: int


class JoinLink(Record, frozen=True):
    """Whoever has the code may join, or ask to; at most `uses_max` times and until `expires_at`, 0 for no end."""

    conversation_id: str
    link_id: str
    code: str
    created_by: str
    created_at: int
    expires_at: int
    uses_max: int
    uses: int
    needs_approval: bool


class JoinCode(Record, frozen=True):
    """SHA-256 of a join link's code, to the link."""

    code_hash: bytes
    conversation_id: str
    link_id: str


class JoinRequest(Record, frozen=True):
    """Somebody asks to be let in."""

    conversation_id: str
    user_id: str
    link_id: str
    requested_at: int


class Draft(Record, frozen=True):
    """What a user has begun to write in a conversation, for their other devices. Without content: given up."""

    user_id: str
    conversation_id: str
    content: Plain | Sealed | None
    reply_to_id: str
    updated_at: int


class Delivery(Record, frozen=True):
    """The delivered watermark of one device in one conversation."""

    conversation_id: str
    user_id: str
    device_id: str
    sequence: int
    delivered_at: int


# --- the log -------------------------------------------------------------------------------------------------------


class LogEntry(Record, frozen=True):
    """One event of a conversation. Sequences count from 1 without a gap."""

    conversation_id: str
    sequence: int
    event: LogEvent


class Amendment(LogEntry, frozen=True):
    """An event that amends an earlier message, or a silent one: told on sockets like any other, but no item of the
    history."""


class Head(Record, frozen=True):
    """How far a conversation's log goes. `message_sequence` is its newest message, 0 if there is none."""

    conversation_id: str
    sequence: int
    message_sequence: int
    active_at: int


def following(head: Head | None, conversation_id: str, event: LogEvent) -> tuple[LogEntry, Head]:
    """`event` as the entry that comes next in a log that goes as far as `head`, and how far it goes with it.

    What amends an earlier message, or is silent, is no activity that moves a conversation up in a list.
    """
    head = head or Head(conversation_id, 0, 0, 0)
    sequence = head.sequence + 1
    if isinstance(event, Message):  # asked first: most are, and to be none of six others costs more
        return LogEntry(conversation_id, sequence, event), Head(conversation_id, sequence, sequence, event.at)
    if isinstance(event, AmendingEvent):
        return Amendment(conversation_id, sequence, event), structs.replace(head, sequence=sequence)
    return LogEntry(conversation_id, sequence, event), Head(conversation_id, sequence, head.message_sequence, event.at)


class Envelope(Record, frozen=True):
    """What one device alone can read of the message with this number; it is deleted once the device has it."""

    conversation_id: str
    device_id: str
    sequence: int
    user_id: str
    type: EnvelopeType
    body: bytes


def enveloped(entry: LogEntry, letter: Letter) -> Envelope:
    """The envelope of `letter`, which came with the message of `entry`."""
    return Envelope(entry.conversation_id, letter.device_id, entry.sequence, letter.user_id, letter.type, letter.body)


class MessageIndex(Record, frozen=True):
    message_id: str
    conversation_id: str
    sequence: int


class Undropped(Record, frozen=True):
    """The log may hold ciphertext from `sequence` on, and holds none before. Up to `ahead` it holds none of the device
    that has acknowledged least."""

    conversation_id: str
    sequence: int
    ahead: int = 0


class Purge(Record, frozen=True):
    """A deleted conversation whose log is still to be erased; upkeep does that step by step."""

    conversation_id: str


class Sent(Record, frozen=True):
    """The idempotency key: this device named this message `temp_id` in this conversation, and was answered so."""

    device_id: str
    conversation_id: str
    temp_id: str
    message_id: str
    sequence: int
    created_at: int
    expires_at: int


# --- what hangs on messages ------------------------------------------------------------------------------------------


class Revision(Record, frozen=True):
    """What a message said before its edit number `number` (from 1)."""

    message_id: str
    number: int
    content: Plain | Sealed
    written_at: int


class Reaction(Record, frozen=True):
    message_id: str
    user_id: str
    emoji: str
    at: int


class Vote(Record, frozen=True):
    """The options (from 0) that a user chose in a poll."""

    message_id: str
    user_id: str
    options: tuple[int, ...]
    at: int


class Untold(Record, frozen=True):
    """Changes of a message that are stored and not yet in the log, because there was a storm of them: the newest of
    each kind."""

    message_id: str
    events: tuple[ReactionChanged | PollChanged, ...]
    conversation_id: str


class Pin(Record, frozen=True):
    conversation_id: str
    sequence: int
    message_id: str
    pinned_by: str
    pinned_at: int


class Thread(Record, frozen=True):
    """A message with replies. `last_sequence` is the newest reply, 0 if all are gone."""

    conversation_id: str
    root_sequence: int
    thread_id: str
    reply_count: int
    last_sequence: int


class ThreadReply(Record, frozen=True):
    thread_id: str
    sequence: int
    sender_id: str


class ThreadRead(Record, frozen=True):
    """How far a user has read a thread; what they read of the conversation counts as well."""

    thread_id: str
    user_id: str
    sequence: int


class Mention(Record, frozen=True):
    """The message names this user; `user_id` is the conversation's id where it names everybody.

    `expires_at` is the message's: a count need not look at it.
    """

    conversation_id: str
    user_id: str
    sequence: int
    sender_id: str
    expires_at: int = 0


class Hidden(Record, frozen=True):
    """A user has deleted this message for themselves alone."""

    conversation_id: str
    user_id: str
    sequence: int
    message_id: str
    hidden_at: int


class Scheduled(Record, frozen=True):
    """A message that goes out at `send_at`. `trouble` is the code of the refusal, if it could not."""

    user_id: str
    scheduled_id: str
    conversation_id: str
    device_id: str
    send_at: int
    created_at: int
    form: bytes
    trouble: str = ""


class Due(Record, frozen=True):
    """Something has to happen at `at`: `what` says what, to the thing with this id and number, of `owner_id`."""

    at: int
    what: str
    subject_id: str
    number: int
    owner_id: str = ""


# --- keys of devices -------------------------------------------------------------------------------------------------


class SignedPreKey(msgspec.Struct, frozen=True, array_like=True):
    """An X25519 public key and its signature by the device's identity key."""

    key_id: int
    public_key: bytes
    signature: bytes


class DeviceKeys(Record, frozen=True):
    """The public keys of a device, but for its one-time pre-keys: of those, how many there are, how far its uploads
    went, and how far they were handed out, as key ids.

    What was handed out is deleted; knowing how far that went keeps a claim from stepping over what is no more. Under
    another `epoch` than the store's the one-time pre-keys may have been handed out since, and are void. `certificate` is
    the signature of the user's account key over the identity key, both as they are now; empty if there is none.
    """

    user_id: str
    device_id: str
    identity_key: bytes
    signed_pre_key: SignedPreKey
    last_resort_pre_key: SignedPreKey
    published_at: int
    epoch: str
    one_time_count: int
    uploaded_key_id: int
    handed_out_key_id: int = 0
    identity_changed_at: int = 0
    certificate: bytes = b""
    former_identity_keys: tuple[bytes, ...] = ()


class AccountKey(Record, frozen=True):
    """The Ed25519 key by which a user says which devices are theirs; `changed_at` is 0 if it was never another one."""

    user_id: str
    account_key: bytes
    changed_at: int = 0


class Introduced(Record, frozen=True):
    """The keys of a device whose identity key was once another one were given to `by_device_id` under this one."""

    device_id: str
    by_device_id: str
    identity_key: bytes


class OneTimePreKey(Record, frozen=True):
    """A public key that is handed out once. Ids only grow, so their order is that of the uploads."""

    user_id: str
    device_id: str
    key_id: int
    public_key: bytes


# --- what the server keeps and cannot read -------------------------------------------------------------------------------


class RosterStatement(Record, frozen=True):
    """One statement of who is in an encrypted group, as text, with the signature over it. Versions count from 1 without
    a gap. `total_bytes` is what all statements up to this one take."""

    conversation_id: str
    version: int
    statement: str
    signature: bytes
    total_bytes: int
    published_at: int


class Archive(Record, frozen=True):
    """A row of chunks that a user keeps, made by a device. From `expires_at` on, unless that is 0, it is there for nobody;
    its chunks are erased from the end, and `chunk_count` says how many are left."""

    user_id: str
    archive_id: str
    kind: ArchiveKind
    device_id: str
    created_at: int
    updated_at: int
    chunk_count: int = 0
    size_bytes: int = 0
    expires_at: int = 0

    def is_over(self, now: int) -> bool:
        return 0 < self.expires_at <= now


class ArchiveChunk(Record, frozen=True):
    user_id: str
    archive_id: str
    number: int
    data: bytes
