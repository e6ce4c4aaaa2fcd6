"""The bodies of the REST calls: what each takes and what it answers. The things inside them are in `gearlink.protocol`."""

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.protocol import EncryptedForm, PollForm, Votes
from gearlink.views import (
    Answer,
    ArchiveKind,
    Audience,
    Content,
    ConversationType,
    ConversationView,
    DecryptionReason,
    Description,
    Device,
    DeviceType,
    Encryption,
    ExpiresIn,
    Id,
    MediaIds,
    Mentions,
    MessageView,
    Name,
    Nickname,
    Reach,
    Request,
    Role,
    SendKind,
    Sequence,
    SilentKind,
    TempId,
    Token,
    User,
)

When = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$",
        max_length=40,
        description="RFC 3339, e.g. 2026-01-31T12:00:00.000Z",
    ),
]
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

KeyId = Annotated[int, Meta(ge=1, le=limits.KEY_ID_MAX)]
# What comes last has few bits left: only one character for each value of them is canonical (RFC 4648 §3.5).
KeyText = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$",
        max_length=43,
        description="32 bytes in canonical base64url without padding",
    ),
]
SignatureText = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-]{85}[AQgw]$",
        max_length=86,
        description="64 bytes in canonical base64url without padding",
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
    restore_account: bool = False


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


class AvatarSet(Answer):
    """Where the new picture can be fetched."""

    avatar_url: str


class DiscoverForm(Request):
    """`hashes`: base64url without padding of SHA-256 of each E.164 number."""

    hashes: Annotated[
        list[Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{43}$", max_length=43)]],
        Meta(max_length=limits.HASHES_PER_CALL_MAX),
    ]


class Discovery(Answer):
    hash: str
    user: User


class ContactForm(Request):
    """Without a nickname the contact is shown under its own name."""

    nickname: Nickname = ""


class PrivacyForm(Request):
    """Only the keys that are present are changed."""

    read_receipts: bool | UnsetType = UNSET
    last_seen: Audience | UnsetType = UNSET
    add_to_groups: Audience | UnsetType = UNSET
    find_by_number: Audience | UnsetType = UNSET
    receipts_to_strangers: bool | UnsetType = UNSET


class OneTimePreKeyForm(Request):
    key_id: KeyId
    public_key: KeyText


class SignedPreKeyForm(Request):
    """`signature`: by the identity key over 0x05 and the public key."""

    key_id: KeyId
    public_key: KeyText
    signature: SignatureText


class KeysForm(Request):
    """The public keys of the calling device. `oneTimePreKeys` are added, by growing ids; the others are replaced."""

    identity_key: KeyText
    signed_pre_key: SignedPreKeyForm
    last_resort_pre_key: SignedPreKeyForm
    one_time_pre_keys: Annotated[list[OneTimePreKeyForm], Meta(max_length=limits.ONE_TIME_KEYS_MAX)]


class CertificateForm(Request):
    """`signature` is by the account key, over the device's user, id and identity key."""

    account_key: KeyText
    signature: SignatureText


class ClaimForm(Request):
    user_id: Id


class SettingsForm(Request):
    """Only the keys that are present are changed; `disappearingSeconds` 0 means that messages stay."""

    write: Reach | UnsetType = UNSET
    pin: Reach | UnsetType = UNSET
    invite: Reach | UnsetType = UNSET
    info: Reach | UnsetType = UNSET
    mention_all: Reach | UnsetType = UNSET
    disappearing_seconds: Annotated[int, Meta(ge=0, le=limits.EXPIRY_SECONDS_MAX)] | UnsetType = UNSET
    history_visible: bool | UnsetType = UNSET


class ConversationForm(Request):
    type: ConversationType
    member_ids: Annotated[list[Id], Meta(max_length=limits.MEMBER_IDS_PER_CALL_MAX)] = msgspec.field(
        default_factory=list
    )
    name: Name | None = None
    description: Description | None = None
    encryption: Encryption | None = None
    settings: SettingsForm | None = None


class ConversationChange(Request):
    """Only the keys that are present are changed."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    settings: SettingsForm | UnsetType = UNSET


class RosterForm(Request):
    """`statement` is JSON as text, kept as it is; `signature` is by its signer's identity key."""

    statement: Annotated[str, Meta(min_length=2, max_length=limits.ROSTER_STATEMENT_BYTES_MAX)]
    signature: SignatureText


class RosterPublished(Answer):
    version: int


class ArchiveForm(Request):
    kind: ArchiveKind


class DecryptionReport(Request):
    """How many messages could not be read since the last report, by reason."""

    counts: Annotated[
        dict[DecryptionReason, Annotated[int, Meta(ge=1, le=limits.DECRYPTION_COUNT_MAX)]], Meta(min_length=1)
    ]


class PreferencesForm(Request):
    """What the caller sets for themselves; only the keys that are present are changed. `mutedUntil: null` ends it."""

    muted_until: When | UnsetType | None = UNSET
    archived: bool | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET


class DraftForm(Request):
    content: Content
    reply_to_id: Id | None = None


class JoinLinkForm(Request):
    """Without `expiresInSeconds` or `usesMax` the link has no end."""

    expires_in_seconds: ExpiresIn | None = None
    uses_max: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    needs_approval: bool = False


class MembersForm(Request):
    user_ids: Annotated[list[Id], Meta(min_length=1, max_length=limits.MEMBER_IDS_PER_CALL_MAX)]
    role: Role = "member"


class MemberChange(Request):
    role: Role


class MessageForm(Request):
    """Either `content` (the text, the caption, the poll's question, or the JSON of a location or contact) or `encrypted`."""

    temp_id: TempId
    content: Content | None = None
    kind: Literal[SendKind, SilentKind] = "text"
    reply_to_id: Id | None = None
    mentions: Mentions | None = None
    media_ids: MediaIds | None = None
    forwarded_from_id: Id | None = None
    expires_in_seconds: ExpiresIn | None = None
    poll: PollForm | None = None
    encrypted: EncryptedForm | None = None


class ScheduleForm(Request):
    """A message that goes out at `sendAt`. Nobody knows yet which devices it will be for, so it is never encrypted."""

    send_at: When
    temp_id: TempId
    content: Content
    kind: SendKind = "text"
    reply_to_id: Id | None = None
    mentions: Mentions | None = None
    media_ids: MediaIds | None = None
    forwarded_from_id: Id | None = None
    expires_in_seconds: ExpiresIn | None = None
    poll: PollForm | None = None


class ScheduleChange(Request):
    """Only the keys that are present are changed; a message that could not go out is tried again."""

    send_at: When | UnsetType = UNSET
    content: Content | UnsetType = UNSET
    mentions: Mentions | UnsetType = UNSET


class EditForm(Request):
    content: Content
    mentions: Mentions | None = None


class VoteForm(Request):
    """The chosen options, from 0; none takes the vote back."""

    options: Votes


class SyncForm(Request):
    """`waitSeconds`: how long the answer may wait for something to happen."""

    epoch: Annotated[str, Meta(max_length=64)] | None = None
    cursors: Annotated[dict[Id, Sequence], Meta(max_length=limits.CURSORS_MAX)] | None = None
    limit: Annotated[int, Meta(ge=1, le=limits.SYNC_FIRST_EVENTS_MAX)] = limits.SYNC_PAGE_EVENTS
    wait_seconds: Annotated[float, Meta(ge=0, le=limits.SYNC_WAIT_SECONDS_MAX)] = 0


class SyncAnswer(Answer):
    """What the socket would have sent: `events` are its frames, `cursors` where to go on, of every conversation.

    `complete` is false if there is more (ask again with these cursors) or if something cannot be replayed (`reload`).
    """

    epoch: str
    cursors: dict[str, int]
    conversations: list[ConversationView]
    events: list[msgspec.Raw]
    complete: bool
    reload: list[str] | UnsetType = UNSET


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
