"""The wire: every frame, request and answer of the contract as a typed struct, and the bytes they become.

What a client sends is refused when it has unknown keys, wrong types or sizes over `config.limits`; what the server sends
may grow, so the SDK ignores keys and frame types that it does not know. Because every field is typed, nesting deeper than
the form is refused by the decoder itself. There is no I/O here and no rule about who may do what.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.errors import INVALID_REQUEST, MALFORMED_JSON, UNKNOWN_TYPE, UNREADABLE_FRAME, Refusal

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
    heartbeat_seconds: int | float
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


_AT = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_KINDS: Final = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "a truth value", "object": "an object",
    "array": "a list",
}  # fmt: skip
_CHOICES_TOLD_MAX: Final = 8


def split_validation_error(error: msgspec.ValidationError, form: Any = None) -> tuple[str, str]:
    """`(path, message)` of msgspec's text, in words for a peer, without the value that was sent: it could be a secret.

    With `form`, which was asked for, a value that is none of a few is told which there are.
    """
    text = str(error)
    path = ""
    if found := _AT.search(text):
        text, path = text[: found.start()], found["path"].replace("[...]", "").lstrip(".")
    complaint, _, rest = text.partition(" `")
    if complaint in ("Object contains unknown field", "Object missing required field"):
        # The key itself is the culprit; an unknown one is not content, but it is not ours: bound it.
        path = f"{path}.{rest.rstrip('`')[:64]}".lstrip(".")
        return path[:256], "unknown field" if "unknown" in complaint else "required"
    return path[:256], _in_words(text, _choices(form, path))


def _in_words(text: str, choices: list[str]) -> str:
    """msgspec's complaint as a peer can read it; one that is not known says no more than that there is one."""
    if text.startswith("Invalid enum value") and choices:
        return ("not one of " if len(choices) > 1 else "not ") + ", ".join(choices)
    if "matching regex" in text:
        return "not an id" if repr(UUID_PATTERN) in text else "not of the required form"
    if found := re.fullmatch(r"Expected `[\w |]+` (?P<length>of length )?(?P<sign><=|>=) (?P<bound>-?\d+)", text):
        bound = f"{'at most' if found['sign'] == '<=' else 'at least'} {found['bound']}"
        return f"length {bound}" if found["length"] else bound
    if found := re.fullmatch(r"Expected `(?P<wanted>[\w |]+)`(?:, got `(?P<got>\w+)`)?", text):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found["wanted"].split(" | "))
        return f"expected {wanted}" + (f", got {_KINDS.get(found['got'], found['got'])}" if found["got"] else "")
    return "not of the required form"


def _choices(form: Any, path: str) -> list[str]:
    """The values that the field at `path` of a struct can have, if they are few texts."""
    kinds = [form]
    for name in re.sub(r"\[\d*\]", "", path).split("."):
        structs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        fields = [each for kind in structs for each in msgspec.structs.fields(kind) if each.encode_name == name]
        kinds = [part for each in fields for part in _parts(each.type)]
    found = [text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)]
    return found if len(found) <= _CHOICES_TOLD_MAX else []


def _parts(kind: Any) -> Iterator[Any]:
    """A type and what it is made of."""
    yield kind
    if get_origin(kind) is not Literal:
        for part in get_args(kind):
            yield from _parts(part)


def decode_body(data: bytes, form: type[T]) -> T:
    """A REST body. Raises Refusal: `malformed-json`, or `invalid-request` with every path that msgspec names."""
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        path, message = split_validation_error(error, form)
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
