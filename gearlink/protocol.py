"""The WebSocket: every frame of the contract as a typed struct, and the bytes they become.

What a client sends is refused when it has unknown keys, wrong types or sizes over `config.limits`; what the server sends
may grow, so the SDK ignores keys and frame types that it does not know. There is no I/O here and no rule about who may do
what. The things inside the frames are in `gearlink.views`.
"""

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.complaints import split_validation_error
from gearlink.errors import INVALID_REQUEST, UNKNOWN_TYPE, UNREADABLE_FRAME, Refusal
from gearlink.views import (
    Ciphertext,
    Content,
    ConversationView,
    DeviceRef,
    DevicesDigest,
    DraftView,
    Emoji,
    EnvelopeType,
    ExpiresIn,
    Id,
    JoinRequestView,
    MediaIds,
    Mentions,
    MessageView,
    PollView,
    PrivacyView,
    ReactionView,
    Ref,
    Request,
    Role,
    ScheduledView,
    SenderKeyId,
    SendKind,
    Sequence,
    SettingsView,
    SilentKind,
    TempId,
    Timestamp,
    Token,
)

SUBPROTOCOL: Final = "gearlink.v1"
ISSUER: Final = "gearlink"
AUDIENCE: Final = "gearlink-app"

Votes = Annotated[
    list[Annotated[int, Meta(ge=0, lt=limits.POLL_OPTIONS_MAX)]], Meta(max_length=limits.POLL_OPTIONS_MAX)
]


# --- WebSocket: what clients say --------------------------------------------------------------------------------------


class PollForm(Request):
    """What can be answered to the question in the content."""

    options: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=limits.POLL_OPTION_CHARS_MAX)]],
        Meta(min_length=2, max_length=limits.POLL_OPTIONS_MAX),
    ]
    multiple: bool = False
    anonymous: bool = False
    closes_in_seconds: ExpiresIn | None = None


class EnvelopeForm(Request):
    """What one device alone can read."""

    user_id: Id
    device_id: Id
    type: EnvelopeType
    body: Ciphertext


class DoubleRatchetForm(Request, tag_field="scheme", tag="double-ratchet"):
    """An envelope for each device, encrypted for it alone."""

    envelopes: Annotated[list[EnvelopeForm], Meta(min_length=1, max_length=limits.ENVELOPES_MAX)]


class SenderKeyForm(Request, tag_field="scheme", tag="sender-key"):
    """One body that all who have the sender's key can read. `devices_digest` is that of the devices that have it."""

    key_id: SenderKeyId
    body: Ciphertext
    devices_digest: DevicesDigest | None = None


EncryptedForm = DoubleRatchetForm | SenderKeyForm


class ClientFrame(
    msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True, tag_field="type", frozen=True
):
    ref: Ref | UnsetType = UNSET


class Auth(ClientFrame, tag="auth", frozen=True):
    access_token: Token
    epoch: Annotated[str, Meta(max_length=64)] | None = None
    cursors: Annotated[dict[Id, Sequence], Meta(max_length=limits.CURSORS_MAX)] | None = None


class Send(ClientFrame, tag="message:send", frozen=True):
    """Either `content` or `encrypted`."""

    temp_id: TempId
    conversation_id: Id
    content: Content | None = None
    kind: Literal[SendKind, SilentKind] = "text"
    reply_to_id: Id | None = None
    mentions: Mentions | None = None
    media_ids: MediaIds | None = None
    forwarded_from_id: Id | None = None
    expires_in_seconds: ExpiresIn | None = None
    poll: PollForm | None = None
    encrypted: EncryptedForm | None = None


class Ack(ClientFrame, tag="message:ack", frozen=True):
    conversation_id: Id
    sequence_number: Sequence


class MarkRead(ClientFrame, tag="message:read", frozen=True):
    conversation_id: Id
    sequence_number: Sequence


class Edit(ClientFrame, tag="message:edit", frozen=True):
    message_id: Id
    content: Content
    mentions: Mentions | None = None


class Delete(ClientFrame, tag="message:delete", frozen=True):
    message_id: Id
    for_everyone: bool


class Pin(ClientFrame, tag="message:pin", frozen=True):
    message_id: Id


class Unpin(ClientFrame, tag="message:unpin", frozen=True):
    message_id: Id


class AddReaction(ClientFrame, tag="reaction:add", frozen=True):
    message_id: Id
    emoji: Emoji


class RemoveReaction(ClientFrame, tag="reaction:remove", frozen=True):
    message_id: Id
    emoji: Emoji


class Vote(ClientFrame, tag="poll:vote", frozen=True):
    """`options` are the chosen ones, from 0; none takes the vote back."""

    message_id: Id
    options: Votes


class ReadThread(ClientFrame, tag="thread:read", frozen=True):
    message_id: Id
    sequence_number: Sequence


class SetDraft(ClientFrame, tag="draft:set", frozen=True):
    """Without content the draft is given up."""

    conversation_id: Id
    content: Content | None = None
    reply_to_id: Id | None = None


class WatchPresence(ClientFrame, tag="presence:watch", frozen=True):
    """In place of those who were watched before."""

    user_ids: Annotated[list[Id], Meta(max_length=limits.WATCHED_MAX)]


class TypingStart(ClientFrame, tag="typing:start", frozen=True):
    conversation_id: Id


class TypingStop(ClientFrame, tag="typing:stop", frozen=True):
    conversation_id: Id


class Ping(ClientFrame, tag="ping", frozen=True):
    pass


AnyClientFrame = (
    Auth | Send | Ack | MarkRead | Edit | Delete | Pin | Unpin | AddReaction | RemoveReaction | Vote | ReadThread
    | SetDraft | WatchPresence | TypingStart | TypingStop | Ping
)  # fmt: skip


# --- WebSocket: what the server says ----------------------------------------------------------------------------------


class ServerFrame(msgspec.Struct, rename="camel", kw_only=True, tag_field="type"):
    """`ref` comes back in direct answers to a frame that had one."""


class AuthOk(ServerFrame, tag="auth:ok"):
    """Signed in; what was missed comes next."""

    user_id: str
    device_id: str
    epoch: str
    heartbeat_seconds: int | float
    server_time: Timestamp
    ref: str | UnsetType = UNSET


class SyncDone(ServerFrame, tag="sync:done"):
    """What was missed has been told, but for what `reload` names."""

    complete: bool
    reload: list[str] | UnsetType = UNSET


class SendAck(ServerFrame, tag="message:ack"):
    """The message is in the log and synced to disk."""

    temp_id: str
    message_id: str
    conversation_id: str
    sequence_number: int
    created_at: Timestamp
    ref: str | UnsetType = UNSET


class MessageNew(ServerFrame, tag="message:new"):
    """Somebody sent a message, or the user did, on another device."""

    message: MessageView


class MessageEvent(ServerFrame):
    """What became of an earlier message."""

    conversation_id: str
    sequence_number: int
    message_id: str
    user_id: str
    at: Timestamp


class MessageEdited(MessageEvent, tag="message:edited"):
    """The message as it is now; its content also stands alone."""

    content: str | None
    edited_at: Timestamp
    message: MessageView


class MessageDeleted(ServerFrame, tag="message:deleted"):
    """For everyone, with a number of its own; or only for the user whose devices are told."""

    conversation_id: str
    message_id: str
    user_id: str
    for_everyone: bool
    deleted_at: Timestamp
    sequence_number: int | UnsetType = UNSET


class MessageExpired(ServerFrame, tag="message:expired"):
    """These have disappeared."""

    conversation_id: str
    sequence_number: int
    message_ids: list[str]


class MessagePinned(MessageEvent, tag="message:pinned"):
    """Somebody pinned a message."""


class MessageUnpinned(MessageEvent, tag="message:unpinned"):
    """Somebody took a pinned message down."""


class ReactionEvent(MessageEvent):
    """`reactions` are all of the message after it: in a storm one event stands for many."""

    emoji: str
    reactions: list[ReactionView]


class ReactionAdded(ReactionEvent, tag="reaction:added"):
    """Somebody reacted."""


class ReactionRemoved(ReactionEvent, tag="reaction:removed"):
    """Somebody took a reaction back."""


class PollChanged(ServerFrame, tag="poll:changed"):
    """Somebody voted, or the poll was closed."""

    conversation_id: str
    sequence_number: int
    message_id: str
    poll: PollView


class MessageDelivered(ServerFrame, tag="message:delivered"):
    """All messages up to this number have reached a device of this member."""

    conversation_id: str
    user_id: str
    sequence_number: int
    delivered_at: Timestamp


class MessageRead(ServerFrame, tag="message:read"):
    """This member has read up to this number."""

    conversation_id: str
    user_id: str
    sequence_number: int
    read_at: Timestamp


class Typing(ServerFrame, tag="typing"):
    """Somebody begins or stops to type."""

    conversation_id: str
    user_id: str
    active: bool


class ConversationEvent(ServerFrame):
    conversation: ConversationView


class ConversationCreated(ConversationEvent, tag="conversation:created"):
    """The user is in this conversation from now on."""


class ConversationUpdated(ServerFrame, tag="conversation:updated"):
    """Name, description, picture or settings were changed: how they are now."""

    conversation_id: str
    sequence_number: int
    actor_id: str
    at: Timestamp
    name: str | None
    description: str | None
    avatar_url: str | None
    settings: SettingsView | UnsetType


class ConversationPreferences(ServerFrame, tag="conversation:preferences"):
    """What the user has set for themselves, on another device."""

    conversation_id: str
    muted_until: Timestamp | None
    archived: bool
    pinned_at: Timestamp | None


class ConversationDeleted(ServerFrame, tag="conversation:deleted"):
    """The user is not in this conversation any more, or there is none."""

    conversation_id: str


class MemberEvent(ServerFrame):
    conversation_id: str
    sequence_number: int
    actor_id: str
    user_id: str
    at: Timestamp


class MemberJoined(MemberEvent, tag="member:joined"):
    """Somebody came in."""

    role: Role
    by: Literal["added", "link", "request"]


class MemberChanged(MemberEvent, tag="member:changed"):
    """Somebody has another role."""

    role: Role


class MemberLeft(MemberEvent, tag="member:left"):
    """Somebody is out, by their own will or not."""

    how: Literal["left", "removed", "banned", "erased"]


class JoinRequested(ServerFrame, tag="join:requested"):
    """Somebody asks to be let in."""

    request: JoinRequestView


class JoinSettled(ServerFrame, tag="join:settled"):
    """The request was granted, declined or withdrawn."""

    conversation_id: str
    user_id: str


class ThreadWasRead(ServerFrame, tag="thread:read"):
    """The user has read a thread so far, on another device."""

    message_id: str
    sequence_number: int


class DraftChanged(ServerFrame, tag="draft:changed"):
    """The user has changed or given up a draft on another device."""

    draft: DraftView


class ScheduledChanged(ServerFrame, tag="scheduled:changed"):
    """The user has scheduled or changed a message on another device, or it could not go out."""

    scheduled: ScheduledView


class ScheduledRemoved(ServerFrame, tag="scheduled:removed"):
    """A scheduled message went out, or the user cancelled it on another device."""

    scheduled_id: str
    conversation_id: str


class ContactChanged(ServerFrame, tag="contact:changed"):
    """The user has a new contact, or another nickname for one, from another device."""

    user_id: str
    nickname: str | None


class ContactRemoved(ServerFrame, tag="contact:removed"):
    """The user has removed a contact on another device."""

    user_id: str


class BlockAdded(ServerFrame, tag="block:added"):
    """The user has blocked somebody on another device."""

    user_id: str


class BlockRemoved(ServerFrame, tag="block:removed"):
    """The user has lifted a block on another device."""

    user_id: str


class PrivacyChanged(ServerFrame, tag="privacy:changed"):
    """The user has changed what others may see and do, on another device."""

    privacy: PrivacyView


class Presence(ServerFrame, tag="presence"):
    """Somebody whom this socket watches is there, or is not."""

    user_id: str
    status: Literal["online", "offline"]
    last_seen_at: Timestamp | UnsetType = UNSET


class DeviceAdded(ServerFrame, tag="device:added"):
    """The user has signed in on another device; or, where this is another user, messages are for this device too."""

    device_id: str
    user_id: str


class DeviceRemoved(ServerFrame, tag="device:removed"):
    """A device of the user was removed; or, where this is another user, messages are not for this device any more."""

    device_id: str
    user_id: str


class KeysLow(ServerFrame, tag="keys:low"):
    """So few one-time pre-keys of this device are left: it should upload more."""

    one_time_remaining: int


class IdentityChanged(ServerFrame, tag="identity:changed"):
    """A device has another identity key than before: whoever talks to it is told before they go on."""

    user_id: str
    device_id: str


class RosterChanged(ServerFrame, tag="roster:changed"):
    """The roster of an encrypted group goes as far as this version now."""

    conversation_id: str
    version: int


class Pong(ServerFrame, tag="pong"):
    """The answer to `ping`."""

    server_time: Timestamp
    ref: str | UnsetType = UNSET


class Ok(ServerFrame, tag="ok"):
    """It was done; or it was noted, of receipts and typing, which is told to a frame with a `ref` alone."""

    ref: str | UnsetType = UNSET


class Error(ServerFrame, tag="error"):
    """The frame was refused: `code` says why."""

    code: str
    detail: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET
    ref: str | UnsetType = UNSET
    temp_id: str | UnsetType = UNSET
    missing: list[DeviceRef] | UnsetType = UNSET
    extra: list[DeviceRef] | UnsetType = UNSET
    changed: list[DeviceRef] | UnsetType = UNSET


class Goodbye(ServerFrame, tag="session:goodbye"):
    """The server is about to close the socket by its own will."""

    reason: str
    retry_after_ms: int


AnyServerFrame = (
    AuthOk | SyncDone | SendAck | MessageNew | MessageEdited | MessageDeleted | MessageExpired | MessagePinned
    | MessageUnpinned | ReactionAdded | ReactionRemoved | PollChanged | MessageDelivered | MessageRead | Typing | Presence
    | ConversationCreated | ConversationUpdated | ConversationPreferences | ConversationDeleted | MemberJoined
    | MemberChanged | MemberLeft | JoinRequested | JoinSettled | ThreadWasRead | DraftChanged | ScheduledChanged
    | ScheduledRemoved | ContactChanged | ContactRemoved | BlockAdded | BlockRemoved | PrivacyChanged | DeviceAdded
    | DeviceRemoved | KeysLow | IdentityChanged | RosterChanged | Pong | Ok | Error | Goodbye
)  # fmt: skip


# --- bytes -----------------------------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
_client_decoder = msgspec.json.Decoder(AnyClientFrame)
_server_decoder = msgspec.json.Decoder(AnyServerFrame)
_CLIENT_FORMS: Final = {str(form.__struct_config__.tag): form for form in get_args(AnyClientFrame)}


class _Hints(msgspec.Struct, rename="camel"):
    """What an error frame brings back, read from a frame that was refused."""

    type: Any = None
    ref: Any = None
    temp_id: Any = None


_hints_decoder = msgspec.json.Decoder(_Hints)


def decode_client(data: bytes | str) -> AnyClientFrame:
    """One frame of a client. Raises Refusal: `unreadable-frame` if it is no JSON object with a `type`, `unknown-type`
    for a type that this server does not know, `invalid-request` if the fields are not what that type takes."""
    try:
        frame: AnyClientFrame = _client_decoder.decode(data)
        return frame
    except msgspec.ValidationError as error:
        hints = _hints(data)
        if hints is None or not isinstance(hints.type, str):
            raise Refusal(UNREADABLE_FRAME) from None
        if hints.type not in _CLIENT_FORMS:
            raise Refusal(UNKNOWN_TYPE) from None
        path, message = split_validation_error(error, _CLIENT_FORMS[hints.type])
        errors = [{"path": path, "message": message}]
        raise Refusal(INVALID_REQUEST, f"{path or 'frame'}: {message}", errors=errors) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refusal(UNREADABLE_FRAME) from None


def _hints(data: bytes | str) -> _Hints | None:
    try:
        return _hints_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def frame_hints(data: bytes | str) -> tuple[str | None, str | None]:
    """`(ref, temp_id)` of a refused frame as far as they can be read and are within their limits."""
    hints = _hints(data)
    if hints is None:
        return None, None
    return _short(hints.ref, limits.REF_CHARS_MAX), _short(hints.temp_id, limits.TEMP_ID_CHARS_MAX)


def _short(value: Any, chars_max: int) -> str | None:
    return value if isinstance(value, str) and len(value) <= chars_max else None


def decode_server(data: bytes | str) -> AnyServerFrame | None:
    """One frame of the server; None if its type is not known, as the contract asks of clients."""
    try:
        message: AnyServerFrame = _server_decoder.decode(data)
        return message
    except msgspec.ValidationError as error:
        path, complaint = split_validation_error(error)
        if path == "type" and complaint != "required":
            return None
        raise


def text_frame(payload: bytes) -> bytes:
    """A whole unmasked WebSocket text frame (RFC 6455 §5.2), as a server sends it."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def frame(message: AnyServerFrame) -> bytes:
    """`message` as the bytes that go on a WebSocket."""
    return text_frame(encode(message))
