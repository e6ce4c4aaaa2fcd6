"""What is stored: one frozen struct for each kind of record, and the notices that a commit tells the rest of the house.

Records are written as MessagePack arrays behind a version byte, so a field may be appended with a default and never
renamed in place, moved or removed without a migration. Ids are UUIDv7 text, times are milliseconds since the epoch.
`Plain` content can be read by the server; `Sealed` content cannot. They are different types, so that nothing but `Plain`
can ever reach search or the transcoder. This module knows nothing of keys, engines or rules.
"""

from typing import Literal

import msgspec

ConversationType = Literal["direct", "group", "channel"]
Encryption = Literal["server", "e2ee"]
Role = Literal["owner", "admin", "member"]
DeviceType = Literal["ios", "android", "web", "desktop", "bot"]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of everything that has a table (`storage.keys.TABLES`)."""


# --- people ----------------------------------------------------------------------------------------------------------


class Account(Record, frozen=True):
    """A user. `phone_number` is E.164 and told to nobody but its owner."""

    user_id: str
    phone_number: str
    created_at: int
    updated_at: int
    is_admin: bool = False
    username: str = ""
    display_name: str = ""
    bio: str = ""


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


# --- conversations ---------------------------------------------------------------------------------------------------


class Conversation(Record, frozen=True):
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


class DirectPair(Record, frozen=True):
    """The one direct conversation of two users; `low_id` < `high_id` as text."""

    low_id: str
    high_id: str
    conversation_id: str


class Member(Record, frozen=True):
    """A user in a conversation, with the read watermark. Events up to `joined_sequence` were before their time."""

    conversation_id: str
    user_id: str
    role: Role
    joined_at: int
    joined_sequence: int
    read_sequence: int = 0
    read_at: int = 0


class Membership(Record, frozen=True):
    """The same fact as `Member`, found from the user's side."""

    user_id: str
    conversation_id: str


class Departure(Record, frozen=True):
    """The user is not in this conversation any more; told to devices that come back, until it expires."""

    user_id: str
    conversation_id: str
    expires_at: int


class Delivery(Record, frozen=True):
    """The delivered watermark of one device in one conversation."""

    conversation_id: str
    user_id: str
    device_id: str
    sequence: int
    delivered_at: int


# --- the log ---------------------------------------------------------------------------------------------------------


class Plain(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Content that the server may read, index and transcode."""

    text: str


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """Ciphertext. The server stores it and hands it on, and can do nothing else with it."""

    scheme: str
    body: bytes


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Base of what the log holds. `event_id` is the message id for messages; `actor_id` caused it."""

    event_id: str
    actor_id: str
    at: int


class Message(Event, frozen=True, tag="m"):
    """`temp_id` is the sender's own name for it and is told to nobody else."""

    device_id: str
    kind: str
    content: Plain | Sealed | None
    temp_id: str
    reply_to_id: str = ""
    mentions: tuple[str, ...] = ()


class MemberJoined(Event, frozen=True, tag="j"):
    user_id: str
    role: Role


class MemberLeft(Event, frozen=True, tag="l"):
    user_id: str


class MemberChanged(Event, frozen=True, tag="c"):
    user_id: str
    role: Role


class ConversationUpdated(Event, frozen=True, tag="u"):
    name: str
    description: str


LogEvent = Message | MemberJoined | MemberLeft | MemberChanged | ConversationUpdated


class LogEntry(Record, frozen=True):
    """One event of a conversation. Sequences count from 1 without a gap."""

    conversation_id: str
    sequence: int
    event: LogEvent


class Head(Record, frozen=True):
    """How far a conversation's log goes. `message_sequence` is its newest message, 0 if there is none."""

    conversation_id: str
    sequence: int
    message_sequence: int
    active_at: int


class MessageIndex(Record, frozen=True):
    message_id: str
    conversation_id: str
    sequence: int


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


# --- notices ---------------------------------------------------------------------------------------------------------


class Appended(msgspec.Struct, frozen=True, tag=True):
    """An entry is in the log and synced."""

    entry: LogEntry


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """`newcomers` are in the conversation from now on; `members` are all of them where they are few, else empty."""

    conversation: Conversation
    newcomers: tuple[Member, ...]
    members: tuple[Member, ...]
    sequence: int


class ConversationDeleted(msgspec.Struct, frozen=True, tag=True):
    conversation_id: str
    member_ids: tuple[str, ...]


class SessionEnded(msgspec.Struct, frozen=True, tag=True):
    """Sockets of this device whose session is not `live_session_id` have to close."""

    user_id: str
    device_id: str
    live_session_id: str = ""


class DeviceAdded(msgspec.Struct, frozen=True, tag=True):
    user_id: str
    device_id: str


class DeviceRemoved(msgspec.Struct, frozen=True, tag=True):
    user_id: str
    device_id: str


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Up to `sequence`, on account of this device of the user."""

    user_id: str
    device_id: str
    sequence: int
    at: int


class Delivered(msgspec.Struct, frozen=True, tag=True):
    """Delivered watermarks that moved."""

    conversation_id: str
    marks: tuple[Mark, ...]


class Read(msgspec.Struct, frozen=True, tag=True):
    """Read watermarks that moved."""

    conversation_id: str
    marks: tuple[Mark, ...]


Notice = Appended | Admitted | ConversationDeleted | SessionEnded | DeviceAdded | DeviceRemoved | Delivered | Read
