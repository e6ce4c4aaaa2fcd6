"""The bodies of the REST calls: what each takes and what it answers. The things inside them are in `gearlink.protocol`."""

import re
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.protocol import (
    Answer,
    Content,
    ConversationType,
    Description,
    Device,
    DeviceType,
    Encryption,
    Id,
    Mentions,
    MessageView,
    Name,
    Request,
    Role,
    SendKind,
    Sequence,
    TempId,
    Token,
    User,
)

PhoneText = Annotated[str, Meta(min_length=5, max_length=32, description="E.164, e.g. +15551230001")]
DisplayName = Annotated[str, Meta(min_length=1, max_length=limits.DISPLAY_NAME_CHARS_MAX)]
# The last group: in Python `$` also matches before a line break at the end.
USERNAME: Final = re.compile(
    f"^[a-z][a-z0-9_.]{{{limits.USERNAME_CHARS_MIN - 1},{limits.USERNAME_CHARS_MAX - 1}}}$(?![\\s\\S])"
)
UsernameText = Annotated[
    str,
    Meta(
        pattern=USERNAME.pattern,
        description="lower case letters, digits, `_` and `.`; starts with a letter",
    ),
]


class VerifyRequest(Request):
    phone_number: PhoneText


class VerifyRequested(Answer):
    verification_id: str
    expires_in_seconds: int
    resend_after_seconds: int


class DeviceForm(Request):
    name: Annotated[str, Meta(min_length=1, max_length=limits.DEVICE_NAME_CHARS_MAX)]
    type: DeviceType
    device_id: Id | None = None


class VerifyConfirm(Request):
    verification_id: Id
    code: Annotated[str, Meta(min_length=1, max_length=16)]
    device: DeviceForm
    invite_code: Annotated[str, Meta(max_length=128)] | None = None


class TokenPair(Answer):
    access_token: str
    refresh_token: str
    expires_in_seconds: int


class SignedIn(TokenPair):
    user: User
    device: Device
    is_new_user: bool


class RefreshForm(Request):
    refresh_token: Token


class ProfileForm(Request):
    """Only the keys that are present are changed; `username: null` gives the name up."""

    display_name: DisplayName | UnsetType = UNSET
    username: UsernameText | UnsetType | None = UNSET
    bio: Annotated[str, Meta(max_length=limits.BIO_CHARS_MAX)] | UnsetType = UNSET


class DiscoverForm(Request):
    """`hashes`: base64url without padding of SHA-256 of each E.164 number."""

    hashes: Annotated[
        list[Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{43}$", max_length=43)]],
        Meta(max_length=limits.HASHES_PER_CALL_MAX),
    ]


class Discovery(Answer):
    hash: str
    user: User


class ConversationForm(Request):
    type: ConversationType
    member_ids: Annotated[list[Id], Meta(max_length=limits.MEMBER_IDS_PER_CALL_MAX)] = msgspec.field(
        default_factory=list
    )
    name: Name | None = None
    description: Description | None = None
    encryption: Encryption | None = None


class ConversationChange(Request):
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET


class MembersForm(Request):
    user_ids: Annotated[list[Id], Meta(min_length=1, max_length=limits.MEMBER_IDS_PER_CALL_MAX)]
    role: Role = "member"


class MemberChange(Request):
    role: Role


class MessageForm(Request):
    temp_id: TempId
    content: Content
    kind: SendKind = "text"
    reply_to_id: Id | None = None
    mentions: Mentions | None = None


class ReadForm(Request):
    sequence_number: Sequence


class Jwk(Answer):
    """RFC 8037 §2: an Ed25519 public key."""

    kty: str
    crv: str
    x: str
    kid: str
    alg: str
    use: str


class Jwks(Answer):
    keys: list[Jwk]


class SentMessage(MessageView, kw_only=True):
    """The message, with its id also under the name that the WebSocket acknowledgement uses."""

    message_id: str
