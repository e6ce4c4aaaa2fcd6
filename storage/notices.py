"""What a commit tells the rest of the house, once it is durable: plain facts, in the order in which they became true.

The hub makes frames of them; they are never stored. This module knows no frame and no socket.
"""

import msgspec

from storage.events import Letter
from storage.records import Conversation, LogEntry, Member, Record


class Appended(msgspec.Struct, frozen=True, tag=True):
    """An entry is in the log and synced. `subject` is the message that it is about as it is now: the one that was
    amended, or the one that a message replies to; None if there is none. `letters` are for one device each."""

    entry: LogEntry
    subject: LogEntry | None = None
    letters: tuple[Letter, ...] = ()


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """`newcomers` are in the conversation from now on; `members` are all of them where they are few, else empty."""

    conversation: Conversation
    newcomers: tuple[Member, ...]
    members: tuple[Member, ...]
    sequence: int


class ConversationDeleted(msgspec.Struct, frozen=True, tag=True):
    conversation_id: str
    member_ids: tuple[str, ...]


class AccountEnded(msgspec.Struct, frozen=True, tag=True):
    """The account was suspended or deleted: all its sockets close."""

    user_id: str


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


class KeysLow(msgspec.Struct, frozen=True, tag=True):
    """So few one-time pre-keys of this device are left."""

    user_id: str
    device_id: str
    remaining: int


class IdentityChanged(msgspec.Struct, frozen=True, tag=True):
    """The device has another identity key than before; the members of these conversations have to know."""

    user_id: str
    device_id: str
    conversation_ids: tuple[str, ...]


class DeviceCounts(msgspec.Struct, frozen=True, tag=True):
    """Messages in these encrypted conversations are for this device too from now on; or, without `counts`, no longer."""

    user_id: str
    device_id: str
    counts: bool
    conversation_ids: tuple[str, ...]


class RosterChanged(msgspec.Struct, frozen=True, tag=True):
    """The roster of this conversation goes as far as `version`."""

    conversation_id: str
    version: int


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
    """Read watermarks that moved. Of those in `kept` only the reader's own devices hear."""

    conversation_id: str
    marks: tuple[Mark, ...]
    kept: tuple[Mark, ...] = ()


class Personal(msgspec.Struct, frozen=True, tag=True):
    """For the devices of these users, but not for `but_device_id`, which did it: `subject` is as it is now, or `gone`."""

    user_ids: tuple[str, ...]
    subject: Record
    gone: bool = False
    but_device_id: str = ""


Notice = (
    Personal
    | Appended
    | Admitted
    | ConversationDeleted
    | SessionEnded
    | AccountEnded
    | DeviceAdded
    | DeviceRemoved
    | KeysLow
    | IdentityChanged
    | DeviceCounts
    | RosterChanged
    | Delivered
    | Read
)
