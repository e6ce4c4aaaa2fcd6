"""The wire: every frame, request and answer of the contract as a typed struct, and the bytes they become.

What a client sends is refused when it has unknown keys, wrong types or sizes over `config.limits`; what the server sends
may grow, so the SDK ignores keys and frame types that it does not know. Because every field is typed, nesting deeper than
the form is refused by the decoder itself. There is no I/O here and no rule about who may do what.
"""

import re
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.errors import INVALID_REQUEST, MALFORMED_JSON, UNREADABLE_FRAME, Refusal

SUBPROTOCOL: Final = "gearlink.v1"
ISSUER: Final = "gearlink"
AUDIENCE: Final = "gearlink-app"

T = TypeVar("T")
UUID_PATTERN: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
Id = Annotated[str, Meta(pattern=UUID_PATTERN, max_length=36, description="UUIDv7")]  # `$` alone lets a final newline in
Sequence = Annotated[int, Meta(ge=0, le=limits.SEQUENCE_MAX)]
TempId = Annotated[str, Meta(min_length=1, max_length=limits.TEMP_ID_CHARS_MAX)]
Ref = Annotated[str, Meta(max_length=limits.REF_CHARS_MAX)]
Content = Annotated[str, Meta(min_length=1, max_length=limits.CONTENT_BYTES_MAX)]
Mentions = Annotated[list[Id], Meta(max_length=limits.MENTIONS_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Description = Annotated[str, Meta(max_length=limits.DESCRIPTION_CHARS_MAX)]
Token = Annotated[str, Meta(min_length=1, max_length=limits.TOKEN_CHARS_MAX)]
Timestamp = Annotated[str, Meta(description="RFC 3339, UTC, milliseconds")]
Role = Literal["owner", "admin", "member"]
DeviceType = Literal["ios", "android", "web", "desktop", "bot"]
ConversationType = Literal["direct", "group", "channel"]
Encryption = Literal["server", "e2ee"]
SendKind = Literal["text"]


class Request(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of what clients send over REST: a typo never passes silently."""


class Answer(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=False):
    """Base of what the server sends. Fields that are UNSET are left out."""


# --- things ----------------------------------------------------------------------------------------------------------


class User(Answer):
    """A user as others see them; `phone_number` and `is_admin` only in one's own."""

    id: str
    username: str | None
    display_name: str
    bio: str
    created_at: Timestamp
    phone_number: str | UnsetType = UNSET
    is_admin: bool | UnsetType = UNSET


class Device(Answer):
    id: str
    name: str
    type: DeviceType
    created_at: Timestamp
    last_seen_at: Timestamp
    current: bool
    signed_in: bool


class MessageView(Answer):
    """A message. `temp_id` is there for its sender's own devices only. A system message has no device."""

    id: str
    conversation_id: str
    sender_id: str
    sender_device_id: str | None
    kind: str
    content: str | None
    sequence_number: int
    created_at: Timestamp
    reactions: list[Any] = []
    temp_id: str | UnsetType = UNSET
    reply_to_id: str | UnsetType = UNSET
    mentions: list[str] | UnsetType = UNSET


class MemberView(Answer):
    user_id: str
    role: Role
    joined_at: Timestamp


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


class DeliveryView(Answer):
    user_id: str
    status: Literal["SENT", "DELIVERED", "READ"]
    delivered_at: Timestamp | UnsetType = UNSET
    read_at: Timestamp | UnsetType = UNSET


class Page(Answer, Generic[T]):
    """A list: `next` is an opaque cursor, null at the end."""

    items: list[T]
    next: str | None = None


class Problem(Answer):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    correlation_id: str
    errors: list[dict[str, str]] | UnsetType = UNSET


# --- WebSocket: what clients say --------------------------------------------------------------------------------------


class ClientFrame(
    msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True, tag_field="type", frozen=True
):
    ref: Ref | UnsetType = UNSET


class Auth(ClientFrame, tag="auth", frozen=True):
    access_token: Token
    epoch: Annotated[str, Meta(max_length=64)] | None = None
    cursors: Annotated[dict[Id, Sequence], Meta(max_length=limits.CURSORS_MAX)] | None = None


class Send(ClientFrame, tag="message:send", frozen=True):
    temp_id: TempId
    conversation_id: Id
    content: Content
    kind: SendKind = "text"
    reply_to_id: Id | None = None
    mentions: Mentions | None = None


class Ack(ClientFrame, tag="message:ack", frozen=True):
    conversation_id: Id
    sequence_number: Sequence


class MarkRead(ClientFrame, tag="message:read", frozen=True):
    conversation_id: Id
    sequence_number: Sequence


class TypingStart(ClientFrame, tag="typing:start", frozen=True):
    conversation_id: Id


class TypingStop(ClientFrame, tag="typing:stop", frozen=True):
    conversation_id: Id


class Ping(ClientFrame, tag="ping", frozen=True):
    pass


AnyClientFrame = Auth | Send | Ack | MarkRead | TypingStart | TypingStop | Ping


# --- WebSocket: what the server says ----------------------------------------------------------------------------------


class ServerFrame(msgspec.Struct, rename="camel", kw_only=True, tag_field="type"):
    """`ref` comes back in direct answers to a frame that had one."""


class AuthOk(ServerFrame, tag="auth:ok"):
    user_id: str
    device_id: str
    epoch: str
    heartbeat_seconds: float
    server_time: Timestamp
    ref: str | UnsetType = UNSET


class SyncDone(ServerFrame, tag="sync:done"):
    complete: bool
    reload: list[str] | UnsetType = UNSET


class SendAck(ServerFrame, tag="message:ack"):
    temp_id: str
    message_id: str
    conversation_id: str
    sequence_number: int
    created_at: Timestamp
    ref: str | UnsetType = UNSET


class MessageNew(ServerFrame, tag="message:new"):
    message: MessageView


class MessageDelivered(ServerFrame, tag="message:delivered"):
    conversation_id: str
    user_id: str
    sequence_number: int
    delivered_at: Timestamp


class MessageRead(ServerFrame, tag="message:read"):
    conversation_id: str
    user_id: str
    sequence_number: int
    read_at: Timestamp


class Typing(ServerFrame, tag="typing"):
    conversation_id: str
    user_id: str
    active: bool


class ConversationEvent(ServerFrame):
    conversation: ConversationView


class ConversationCreated(ConversationEvent, tag="conversation:created"):
    pass


class ConversationUpdated(ServerFrame, tag="conversation:updated"):
    conversation_id: str
    sequence_number: int
    actor_id: str
    at: Timestamp
    name: str | None
    description: str | None


class ConversationDeleted(ServerFrame, tag="conversation:deleted"):
    conversation_id: str


class MemberEvent(ServerFrame):
    conversation_id: str
    sequence_number: int
    actor_id: str
    user_id: str
    at: Timestamp


class MemberJoined(MemberEvent, tag="member:joined"):
    role: Role


class MemberChanged(MemberEvent, tag="member:changed"):
    role: Role


class MemberLeft(MemberEvent, tag="member:left"):
    pass


class DeviceAdded(ServerFrame, tag="device:added"):
    device_id: str
    user_id: str


class DeviceRemoved(ServerFrame, tag="device:removed"):
    device_id: str
    user_id: str


class Pong(ServerFrame, tag="pong"):
    server_time: Timestamp
    ref: str | UnsetType = UNSET


class Ok(ServerFrame, tag="ok"):
    ref: str | UnsetType = UNSET


class Error(ServerFrame, tag="error"):
    code: str
    detail: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET
    ref: str | UnsetType = UNSET
    temp_id: str | UnsetType = UNSET


class Goodbye(ServerFrame, tag="session:goodbye"):
    reason: str
    retry_after_ms: int


AnyServerFrame = (
    AuthOk | SyncDone | SendAck | MessageNew | MessageDelivered | MessageRead | Typing | ConversationCreated
    | ConversationUpdated | ConversationDeleted | MemberJoined | MemberChanged | MemberLeft | DeviceAdded | DeviceRemoved
    | Pong | Ok | Error | Goodbye
)  # fmt: skip


# --- bytes -----------------------------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
_client_decoder = msgspec.json.Decoder(AnyClientFrame)
_server_decoder = msgspec.json.Decoder(AnyServerFrame)
CLIENT_TYPES: Final = frozenset(str(form.__struct_config__.tag) for form in get_args(AnyClientFrame))


class _Hints(msgspec.Struct, rename="camel"):
    """What an error frame brings back, read from a frame that was refused."""

    type: str = ""
    ref: str | None = None
    temp_id: str | None = None


_hints_decoder = msgspec.json.Decoder(_Hints)


def decode_client(data: bytes | str) -> AnyClientFrame:
    """One frame of a client. Raises Refusal: `unreadable-frame` if it is no JSON object of a known type,
    `invalid-request` if its fields are not what that type takes."""
    try:
        frame: AnyClientFrame = _client_decoder.decode(data)
        return frame
    except msgspec.ValidationError as error:
        hints = _hints(data)
        if hints is None or hints.type not in CLIENT_TYPES:
            raise Refusal(UNREADABLE_FRAME) from None
        path, message = split_validation_error(error)
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
    ref = hints.ref if hints.ref is not None and len(hints.ref) <= limits.REF_CHARS_MAX else None
    temp_id = hints.temp_id if hints.temp_id is not None and len(hints.temp_id) <= limits.TEMP_ID_CHARS_MAX else None
    return ref, temp_id


def decode_server(data: bytes | str) -> AnyServerFrame | None:
    """One frame of the server; None if its type is not known, as the contract asks of clients."""
    try:
        message: AnyServerFrame = _server_decoder.decode(data)
        return message
    except msgspec.ValidationError as error:
        if split_validation_error(error)[0] == "type":
            return None
        raise


_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_QUOTED = re.compile(r"value '.*?'", re.DOTALL)


def split_validation_error(error: msgspec.ValidationError) -> tuple[str, str]:
    """`(path, message)` of msgspec's text, without the value that was sent: it could be a secret."""
    text = str(error)
    path = ""
    if found := _AT.search(text):
        text, path = text[: found.start()], found["path"].lstrip(".")
    if "unknown field" in text:  # the key itself is the culprit; its name is not content, but it is not ours: bound it
        name = text.partition("`")[2].rstrip("`")[:64]
        path = f"{path}.{name}".lstrip(".")
        return path, "unknown field"
    return path[:256], _QUOTED.sub("value", text)[:256]


def decode_body(data: bytes, form: type[T]) -> T:
    """A REST body. Raises Refusal: `malformed-json`, or `invalid-request` with every path that msgspec names."""
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        path, message = split_validation_error(error)
        raise Refusal(INVALID_REQUEST, errors=[{"path": path, "message": message}]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refusal(MALFORMED_JSON) from None


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
