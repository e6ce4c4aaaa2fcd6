"""What is encrypted: letters, how they are written and padded, and why something could not be read.

A letter is a JSON object; its `type` says what it is. All fields that come from others are bounded here, and bytes of which
nothing can be made are `Undecryptable`, whatever they are. Who said a letter, and whether it counts, is not known here.
Letters hold secrets and what people wrote, so they do not show themselves in a log or an error.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink import views
from gearlink.calls import When
from gearlink.views import Content, Emoji, ExpiresIn, Id, Mentions, TempId

Reason = views.DecryptionReason
WireKind = Literal["text", "control", "key-distribution"]
LetterKind = Literal["text", "image", "video", "audio", "voice", "file", "location", "contact"]

PAD_BYTES: Final = 160
SEALING_BYTES_MAX: Final = 256  # what an envelope or a sender key puts around a letter, at most
LETTER_BYTES_MAX: Final = (limits.CIPHERTEXT_BYTES_MAX - SEALING_BYTES_MAX) // PAD_BYTES * PAD_BYTES  # padded
FILE_BYTES_MAX: Final = 2**40
NAME_CHARS_MAX: Final = 255
MIME_CHARS_MAX: Final = 127
PIXELS_SIDE_MAX: Final = 1_000_000
DURATION_SECONDS_MAX: Final = 7 * 86_400
BLUR_HASH_CHARS_MAX: Final = 128
WAVEFORM_CHARS_MAX: Final = 400
THUMBNAIL_CHARS_MAX: Final = 8 * 1024

assert LETTER_BYTES_MAX > 3 * limits.CONTENT_BYTES_MAX, "a content of line breaks alone, escaped once more in a resend"

_END: Final = "$(?![\\s\\S])"  # in Python `$` also matches before a line break at the end


class Undecryptable(Exception):
    """Something cannot be read. `reason` is the code of docs/encryption.md; nothing of the bytes is in here."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class Duplicate(Exception):
    """This was read before: its message key was used. That is no trouble."""


class LetterTooLarge(ValueError):
    """More than the server takes in one body. It can be a resend, of a letter that itself just fits."""


# --- fields ----------------------------------------------------------------------------------------------------------

# Canonical base64url: the bits of the last symbol that stand for nothing are zero, so each value has one text.
Bytes16 = Annotated[str, Meta(pattern=f"^[A-Za-z0-9_-]{{21}}[AQgw]{_END}", max_length=22)]
Bytes32 = Annotated[str, Meta(pattern=f"^[A-Za-z0-9_-]{{42}}[AEIMQUYcgkosw048]{_END}", max_length=43)]
Bytes64 = Annotated[str, Meta(pattern=f"^[A-Za-z0-9_-]{{85}}[AQgw]{_END}", max_length=86)]

Counted = Annotated[int, Meta(ge=0, le=limits.SEQUENCE_MAX)]  # 0 is for an own letter that has no number yet
Iteration = Annotated[int, Meta(ge=0, le=2**32 - 1)]
ReasonText = Annotated[str, Meta(pattern=f"^[a-z-]{{1,32}}{_END}", max_length=32)]  # later releases may have others
EpochText = Annotated[str, Meta(min_length=1, max_length=64)]
_BASE64: Final = f"^(?:[A-Za-z0-9_-]{{4}})*(?:[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{{2}}[AEIMQUYcgkosw048])?{_END}"
FileName = Annotated[
    str, Meta(pattern=f"^(?!\\.{{1,2}}{_END})[^/\\\\\\x00-\\x1f\\x7f]+{_END}", max_length=NAME_CHARS_MAX)
]
MimeType = Annotated[
    str,
    Meta(pattern=f"^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+{_END}", max_length=MIME_CHARS_MAX),
]  # RFC 6838 §4.2, without parameters
Pixels = Annotated[int, Meta(ge=1, le=PIXELS_SIDE_MAX)]


class _Form(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """What stands in JSON. Keys that are unknown are ignored; an optional field without a value is left out."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class RosterMark(_Form, frozen=True, kw_only=True):
    """The newest statement of the roster that the sender knows; `hash` is SHA-256 of its text."""

    version: Annotated[int, Meta(ge=1, le=limits.SEQUENCE_MAX)]
    hash: Bytes32


class Attachment(_Form, frozen=True, kw_only=True):
    """A file that was encrypted. `size` is that of the file itself, in bytes; `sha256` is of what it was encrypted to."""

    media_id: Id
    key: Bytes32
    sha256: Bytes32
    size: Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]
    mime_type: MimeType
    name: FileName | UnsetType = UNSET
    width: Pixels | UnsetType = UNSET
    height: Pixels | UnsetType = UNSET
    duration_seconds: Annotated[float, Meta(ge=0, le=DURATION_SECONDS_MAX)] | UnsetType = UNSET
    blur_hash: Annotated[str, Meta(pattern=f"^[!-~]+{_END}", max_length=BLUR_HASH_CHARS_MAX)] | UnsetType = UNSET
    waveform: Annotated[str, Meta(pattern=_BASE64, max_length=WAVEFORM_CHARS_MAX)] | UnsetType = UNSET
    thumbnail: Annotated[str, Meta(pattern=_BASE64, max_length=THUMBNAIL_CHARS_MAX)] | UnsetType = UNSET


Attachments = Annotated[list[Attachment], Meta(max_length=limits.MEDIA_PER_MESSAGE_MAX)]


# --- letters ---------------------------------------------------------------------------------------------------------


class _Letter(_Form, frozen=True, kw_only=True, tag_field="type"):
    """`conversation_id` is the one that it came in. `certificate` introduces the sending device in `prekey` envelopes."""

    conversation_id: Id
    certificate: Bytes64 | UnsetType = UNSET


class Target(_Form, frozen=True, kw_only=True):
    """The message that a letter is about, as its sender numbered it: ids are given by the server, numbers are not."""

    device_id: Id
    count: Annotated[int, Meta(ge=1, le=limits.SEQUENCE_MAX)]


class Message(_Letter, frozen=True, kw_only=True, tag="message"):
    """What a person or a bot said. `content` is empty only with attachments. `expires_in_seconds` is from then on."""

    count: Counted
    temp_id: TempId
    kind: LetterKind
    content: Annotated[str, Meta(max_length=limits.CONTENT_BYTES_MAX)]
    reply_to_id: Id | UnsetType = UNSET
    reply_to: Target | UnsetType = UNSET
    mentions: Mentions | UnsetType = UNSET
    attachments: Attachments | UnsetType = UNSET
    expires_in_seconds: ExpiresIn | UnsetType = UNSET
    roster: RosterMark | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_content(self.content)
        if not self.content and not self.attachments:
            raise ValueError("a message has a content or attachments")


class Edit(_Letter, frozen=True, kw_only=True, tag="edit"):
    """Another content for a message of the same sender."""

    count: Counted
    message_id: Id
    target: Target | UnsetType = UNSET
    content: Content
    mentions: Mentions | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_content(self.content)


class Reaction(_Letter, frozen=True, kw_only=True, tag="reaction"):
    """A reaction to a message; not `added`: it is taken back."""

    count: Counted
    message_id: Id
    target: Target | UnsetType = UNSET
    emoji: Emoji
    added: bool


class SenderKeyGiven(_Letter, frozen=True, kw_only=True, tag="sender-key"):
    """The sender key of this device and conversation, from `iteration` on."""

    key_id: Bytes16
    iteration: Iteration
    chain_key: Bytes32
    signature_key: Bytes32
    roster: RosterMark | UnsetType = UNSET


class ResendRequest(_Letter, frozen=True, kw_only=True, tag="resend-request"):
    """Asks the sender's device for a letter: that of the message, or that with this `count`. With `key_id` also for that
    sender key."""

    reason: ReasonText
    message_id: Id | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=limits.SEQUENCE_MAX)] | UnsetType = UNSET
    key_id: Bytes16 | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.message_id is UNSET and self.count is UNSET:
            raise ValueError("it names a message or a count")


class Resend(_Letter, frozen=True, kw_only=True, tag="resend"):
    """The letter that could not be read, as text, and where it stands in the history."""

    message_id: Id
    sequence_number: Annotated[int, Meta(ge=1, le=limits.SEQUENCE_MAX)]
    created_at: When
    epoch: EpochText
    letter: Annotated[str, Meta(min_length=2, max_length=LETTER_BYTES_MAX)]


class Link(_Letter, frozen=True, kw_only=True, tag="link"):
    """What an old device gives a new one of the same user: the private account key, and how the history is opened. `proof`
    shows that the code of the new device was typed where this was written."""

    account_key: Bytes32
    proof: Bytes32
    archive_id: Id | UnsetType = UNSET
    archive_key: Bytes32 | UnsetType = UNSET
    backup_key: Bytes32 | UnsetType = UNSET


class UnknownLetter(_Form, frozen=True, kw_only=True):
    """A letter of a type that a later release has: acknowledged and ignored."""

    type: Annotated[str, Meta(max_length=64)]
    conversation_id: Id


Numbered = Message | Edit | Reaction
Letter = Message | Edit | Reaction | SenderKeyGiven | ResendRequest | Resend | Link
AnyLetter = Letter | UnknownLetter

WIRE_KIND: Final[Mapping[type[msgspec.Struct], WireKind]] = MappingProxyType(
    {
        Message: "text",
        Edit: "control",
        Reaction: "control",
        SenderKeyGiven: "key-distribution",
        ResendRequest: "control",
        Resend: "control",
        Link: "control",
    }
)
"""As what each goes: the `kind` on the wire."""

_TYPES: Final = frozenset(str(kind.__struct_config__.tag) for kind in WIRE_KIND)
_read_letter: Final[msgspec.json.Decoder[Letter]] = msgspec.json.Decoder(Letter)
_read_unknown: Final = msgspec.json.Decoder(UnknownLetter)
_write: Final = msgspec.json.Encoder().encode


def wire_kind(letter: Letter) -> WireKind:
    """The `kind` that the message with this letter has on the wire."""
    return WIRE_KIND[type(letter)]


# --- reading and writing ---------------------------------------------------------------------------------------------


def to_json(letter: Letter) -> bytes:
    """The JSON of a letter, in UTF-8."""
    return _write(letter)


def from_json(raw: bytes | str) -> AnyLetter:
    """The letter that this JSON says. An own one may have the `count` 0: see `decode` for those of others.

    Raises Undecryptable `unreadable-letter`.
    """
    if len(raw) > LETTER_BYTES_MAX:
        raise Undecryptable("unreadable-letter")
    try:
        # The decoder looks into nothing that it skips: what is not UTF-8 in an unknown key is no JSON either.
        utf8 = raw if isinstance(raw, str) else str(raw, "utf-8")
        found = _lenient(utf8)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = None
    if found is None:  # outside of the `except`, so that no error above hangs on to the one below
        raise Undecryptable("unreadable-letter")
    return found


def _lenient(text: str) -> AnyLetter | None:
    """A letter of a type that is known, or one of another type. None for one that is known and broken."""
    try:
        return _read_letter.decode(text)
    except msgspec.ValidationError:
        unknown = _read_unknown.decode(text)
        return unknown if unknown.type not in _TYPES else None


def encode(letter: Letter) -> bytes:
    """The plaintext of a letter: its JSON, padded. Raises LetterTooLarge."""
    padded = pad(to_json(letter))
    if len(padded) > LETTER_BYTES_MAX:
        raise LetterTooLarge(f"a letter has at most {LETTER_BYTES_MAX} bytes")
    return padded


def decode(plaintext: bytes) -> AnyLetter:
    """The letter of somebody else. Raises Undecryptable `unreadable-letter` for anything that is none."""
    letter = from_json(unpad(plaintext))
    if isinstance(letter, Numbered) and not letter.count:
        raise Undecryptable("unreadable-letter")
    return letter


def pad(text: bytes) -> bytes:
    """`0x80` and zero bytes up to the next multiple of 160 (ISO/IEC 7816-4)."""
    return text + b"\x80" + bytes(-(len(text) + 1) % PAD_BYTES)


def unpad(padded: bytes) -> bytes:
    """What was padded. Raises Undecryptable `unreadable-letter` for all that `pad` does not make."""
    if len(padded) > LETTER_BYTES_MAX or pad(text := padded.rstrip(b"\x00")[:-1]) != padded:
        raise Undecryptable("unreadable-letter")
    return text


def _check_content(content: str) -> None:
    if len(content.encode()) > limits.CONTENT_BYTES_MAX:
        raise ValueError("too many bytes")
